// Reads the server over HTTP.

// JSON of the server; throws an Error whose text is for people, with the `status` if there was an answer, and `faults` of
// a form by field if there are any.
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
  const error = new Error(found?.said ?? found?.detail ?? `The server answers ${response.status}.`);
  throw Object.assign(error, { status: response.status, faults: found?.faults ?? null });
}

// Rows of values as objects by their columns' names.
export function toObjects({ columns, rows }) {
  return rows.map((values) => Object.fromEntries(columns.map((name, place) => [name, values[place]])));
}
