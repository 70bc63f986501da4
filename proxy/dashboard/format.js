// Numbers and times as people read them.

const MINUS = '\u2212';

export const fixed = (value, digits) => value.toFixed(digits).replace('-', MINUS);
export const signed = (value, digits = 2) => (value > 0 ? '+' : '') + fixed(value, digits);

/** Milliseconds: "0.42 ms", "12.3 ms", "412 ms", "4.2 s", "3 min 5 s". */
export function ms(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (value < 0) return MINUS + ms(-value);
  if (value < 1 && value > 0) return `${value.toFixed(2)} ms`;
  if (value < 100 && value % 1) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 59_950) return `${(value / 1000).toFixed(1)} s`;
  return span(value);
}

/** A long time: "3 min", "2 h 5 min", "4 d 2 h". */
export function span(value) {
  const seconds = Math.max(0, Math.round(value / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(value) {
  if (value === null || value === undefined) return '–';
  let unit = 0;
  while (value >= 1024 && unit < 4) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`;
}

export const count = (value) => value.toLocaleString('en-GB').replaceAll(',', '\u2009');

const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' });

/** Local time; with the date when it is not today's. */
export function moment(at_ms) {
  const at = new Date(at_ms);
  const today = at.toDateString() === new Date().toDateString();
  return today ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}
export const time = (at_ms) => clock.format(new Date(at_ms));
/** For `<time datetime>`. */
export const iso = (at_ms) => new Date(at_ms).toISOString();

export const words = (name) => name.replaceAll('_', ' ');
