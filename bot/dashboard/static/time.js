/** Times and durations as people read them. */

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const RELATIVE = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

/** "14:32" */
export const clock = (date) => CLOCK.format(date);
/** "Sunday, 22 November" */
export const day = (date) => DAY.format(date);
/** "21 Nov" */
export const shortDay = (date) => SHORT_DAY.format(date);
/** The long form, for tooltips. */
export const full = (date) => FULL.format(date);
/** "14:32" today, "21 Nov, 14:32" before. */
export const stamp = (date) => (sameDay(date, new Date()) ? clock(date) : `${SHORT_DAY.format(date)}, ${clock(date)}`);

/** Whether two dates fall on the same local day. */
export function sameDay(a, b) {
  return a.getFullYear() === b.getFullYear() && a.getMonth() === b.getMonth() && a.getDate() === b.getDate();
}

/** "in 3 hours", "2 minutes ago"; `seconds` counts from now. */
export function relative(seconds) {
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return RELATIVE.format(Math.round(seconds / size), unit);
  }
  return RELATIVE.format(Math.round(seconds), "second");
}

/** "45 s", "3 min 20 s", "2 h 5 min" */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  if (whole < 3600) return `${Math.round(whole / 60)} min`;
  const minutes = Math.round((whole % 3600) / 60);
  return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
}
