// Requests to the pack's own routes (host/memory/routes.py).
import { api } from "../../../scripts/api.js";

/** The answer's JSON. A body makes it a POST. Throws an Error with the server's own sentence where it refuses. */
export async function request(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await api.fetchApi(`/noise_search/${path}`, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status} ${response.statusText}.`);
  return answer;
}
