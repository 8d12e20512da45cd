// The alerts: two views of one page, the episodes and the trial of a rule.

import { choice } from "./answers.js";
import { Feed } from "./feed.js";
import { TrialView } from "./trial.js";

export function mount(element, options) {
  element.classList.add("cp-alerts-page");
  const bar = document.createElement("div");
  bar.className = "cp-switch";
  const place = document.createElement("div");
  element.append(bar, place);
  let view = null;
  const show = (name) => {
    view?.unmount();
    place.replaceChildren();
    view = name === "try" ? new TrialView(place, options) : new Feed(place, options);
    const query = new URLSearchParams(name === "try" ? "view=try" : "");
    if (name !== first || !location.search) history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}${name === "try" ? "" : location.hash}`);
  };
  const first = new URLSearchParams(location.search).get("view") === "try" ? "try" : "episodes";
  choice(bar, "View", [["episodes", "Episodes"], ["try", "Try a rule", "What a rule would have raised on the stored trades"]], first, show);
  show(first);
  return { unmount: () => view?.unmount() };
}
