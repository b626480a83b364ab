/** A run's report in a tab of its own. */

import { toast } from "./notices.js";

/**
 * Show a run's report; `make(runId)` resolves to the path that shows it. The tab is opened at once: browsers
 * block one that opens later.
 */
export async function openReport(runId, make) {
  const tab = window.open("about:blank", "_blank");
  if (tab) {
    tab.document.documentElement.style.colorScheme = "light dark";
    tab.document.title = `Run ${runId}`;
    tab.document.body.textContent = "Making the report…";
  }
  try {
    tab.location.replace(await make(runId));
  } catch (error) {
    tab?.close();
    toast(error.message, "error");
  }
}
