// Filtered episodes, kept up to date: `EpisodePages` connected to the server.

import { fetchJson } from "./api.js";
import { EpisodePages, queryOf } from "./episode_filter.js";
import { subscribe } from "./live.js";

export class Episodes extends EpisodePages {
  // `path`: prefix of the requests. `onChange(ids)` is called after each change with the ids of new episodes.
  constructor({ path, onChange }) {
    super();
    Object.assign(this, { path, onChange, error: "", isRead: false, isReading: false });
    this.end = subscribe("alerts", (message) => onChange(this.receive(message)));
  }

  // Reads the next page.
  older() {
    return this.read(this.filters, this.oldest);
  }

  // Reads the page after `oldest`; without it the first page, and then shows these filters instead of the old ones.
  async read(filters, oldest = null) {
    this.reading?.abort();
    const reading = (this.reading = new AbortController());
    const query = queryOf(filters);
    if (oldest) {
      query.set("opened_before", oldest.opened_at);
      query.set("id_before", oldest.alert_id);
    }
    this.isReading = true;
    let page = null;
    try {
      page = await fetchJson(`${this.path}/episodes?${query}`, { signal: reading.signal });
      this.error = "";
    } catch (error) {
      if (error.name === "AbortError") return;
      this.error = `Episodes could not be read: ${error.message}`;
    }
    if (!oldest) this.begin(filters);
    if (page) this.addPage(page);
    this.isReading = false;
    this.isRead = true;
    this.onChange([]);
  }

  unmount() {
    this.reading?.abort();
    this.end();
  }
}
