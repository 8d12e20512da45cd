// HTTP requests to the server.

// Fetches JSON. Throws an Error with a text for people, `status` if there was an answer, and `faults` by field if a form
// was invalid.
export async function fetchJson(path, { method = "GET", body, signal } = {}) {
  let response;
  try {
    response = await fetch(`${window.path_prefix ?? ""}${path}`, {
      method,
      signal,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  const found = await response.json().catch(() => null);
  if (response.ok && found) return found;
  const error = new Error(found?.detail ?? `The server answers ${response.status}.`);
  throw Object.assign(error, { status: response.status, faults: found?.faults ?? null });
}

// Converts rows of values to objects with the columns as keys.
export function toObjects({ columns, rows }) {
  return rows.map((values) => Object.fromEntries(columns.map((name, place) => [name, values[place]])));
}
