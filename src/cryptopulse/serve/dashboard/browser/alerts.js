// The alerts page with two views: the episodes, and the backtest of a rule.

import { AlertList } from "./alert_list.js";
import { currentHash, h, replaceAddress } from "./dom.js";
import { choice } from "./panels.js";
import { TrialView } from "./trial.js";

export function mount(element, options) {
  const bar = h("div", { className: "cp-switch" });
  const body = h("div");
  element.append(bar, body);
  let view = null;
  const show = (name) => {
    const isTrial = name === "try";
    view?.unmount();
    body.replaceChildren();
    view = isTrial ? new TrialView(body, options) : new AlertList(body, options);
    if (name !== first || !location.search) replaceAddress({ query: isTrial ? "view=try" : "", hash: isTrial ? "" : currentHash() });
  };
  const first = new URLSearchParams(location.search).get("view") === "try" ? "try" : "episodes";
  choice(bar, "View", [["episodes", "Episodes"], ["try", "Try a rule", "What a rule would have raised on the stored trades"]], first, show);
  show(first);
  return { unmount: () => view?.unmount() };
}
