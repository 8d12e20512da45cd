// Where the browser's modules are; a test imports those that need no page.

export const FOLDER = new URL("../../src/cryptopulse/serve/dashboard/browser/", import.meta.url);

export function load(name) {
  return import(new URL(`${name}.js`, FOLDER));
}
