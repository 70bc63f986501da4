// Light, dark, or what the system says.
import { signal } from './vendor/signals.js';

const system = matchMedia('(prefers-color-scheme: dark)');
const kept = () => {
  try {
    return localStorage.getItem('godwit-theme');
  } catch {
    return null;
  }
};

export const choice = signal(kept() ?? 'system');
/** `light` or `dark`: what is shown. */
export const theme = signal('light');

export function choose(next) {
  choice.value = next;
  try {
    localStorage.setItem('godwit-theme', next);
  } catch {
    // Not kept, then.
  }
  apply();
}

export function apply() {
  const dark = choice.peek() === 'dark' || (choice.peek() === 'system' && system.matches);
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  theme.value = dark ? 'dark' : 'light';
}

system.addEventListener('change', apply);
apply();
