// Putting figures into the page: only what has changed is touched, only as text, and rows stay the elements they were.

export const byId = (id) => document.getElementById(id);

/** Sets a text where it is another one. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function label(element, name, text) {
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/**
 * Keeps a list of elements in step with a list of items.
 * @param parent holds them
 * @param template what each is made from
 * @param fill writes an item into its element; `part(name)` finds what has `data-of="name"`
 */
export function createRows(parent, template, fill) {
  const rows = new Map();

  function make(key) {
    const row = template.content.firstElementChild.cloneNode(true);
    const parts = new Map([...row.querySelectorAll('[data-of]')].map((part) => [part.dataset.of, part]));
    const made = { row, part: (name) => parts.get(name) };
    rows.set(key, made);
    return made;
  }

  return (items, keyOf) => {
    const keys = new Set(items.map(keyOf));
    for (const [key, { row }] of rows) {
      if (keys.has(key)) continue;
      // Whoever stood on it is not sent to the top of the page.
      if (row.contains(document.activeElement)) row.closest('section').querySelector('h2').focus();
      row.remove();
      rows.delete(key);
    }
    let next = parent.firstElementChild;
    for (const item of items) {
      const { row, part } = rows.get(keyOf(item)) ?? make(keyOf(item));
      fill(item, part, row);
      // Moved elements would lose the focus, so only new ones are put in.
      if (row === next) next = next.nextElementSibling;
      else parent.insertBefore(row, next);
    }
  };
}

/** A line of samples, with what lies below it. */
export function drawLine(svg, samples, count) {
  const top = Math.max(1, ...samples) * 1.05;
  const x = (at) => (150 * (at + count - samples.length)) / (count - 1);
  const y = (value) => 35 - (34 * value) / top;
  const points = samples.map((value, at) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
  const line = points.length < 2 ? '' : `M${points.join('L')}`;
  label(svg.querySelector('.stroke'), 'd', line);
  label(svg.querySelector('.area'), 'd', line && `${line}L150 36L${x(0).toFixed(1)} 36Z`);
}

/** Shares of a whole, side by side. */
export function drawShares(svg, shares) {
  const sum = shares.reduce((total, share) => total + share, 0) || 1;
  let x = 0;
  for (const [at, rect] of [...svg.children].entries()) {
    const width = (100 * shares[at]) / sum;
    label(rect, 'x', String(x));
    label(rect, 'width', String(width));
    x += width;
  }
}

const plain = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export function formatCount(count) {
  return count < 10_000 ? plain.format(count) : short.format(count);
}

export function formatRate(rate) {
  return rate > 0 && rate < 10 ? rate.toFixed(1) : formatCount(rate);
}

/** A few digits, in the unit that suits it. */
export function formatTime(ms) {
  if (ms === undefined || ms === null) return '–';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return formatSpan(ms);
}

export function formatSpan(ms) {
  const seconds = Math.floor(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes === 0) return `${seconds} s`;
  if (hours === 0) return seconds % 60 === 0 ? `${minutes} min` : `${minutes} min ${seconds % 60} s`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function formatUsd(usd) {
  return `$${usd.toFixed(usd < 1 ? 4 : 2)}`;
}

export function medianOf(values) {
  const sorted = values.filter((value) => typeof value === 'number').sort((one, other) => one - other);
  return sorted[Math.floor(sorted.length / 2)];
}
