// Moving: the plan first, then the resource's name by hand.
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { at, post } from '../api.js';
import { Dialog, Failure, html, useAction } from '../ui.js';
import { Guards } from './score.js';

export function Migrate({ view, onClose }) {
  const [plan, ask] = useAction(() => post(at(view.name, '/migrations'), { dry_run: true }));
  const [start, begin] = useAction(() => post(at(view.name, '/migrations'), { to: plan.result.to }));
  const [typed, setTyped] = useState('');
  useEffect(() => void ask(), []);
  const submit = async (event) => {
    event.preventDefault();
    const { error } = await begin();
    if (!error) event.target.closest('dialog').close();
  };
  const wanting = plan.result?.guards.filter((guard) => guard.binds_operator && !guard.passed) ?? [];
  return html`<${Dialog} title=${`Migrate ${view.name}`} onClose=${onClose}>
    ${plan.busy ? html`<p class="muted">asking for the plan…</p>` : ''}
    <${Failure} error=${plan.error} />
    ${plan.result
      ? html`<p class="lead"><strong>${plan.result.from}</strong> → <strong>${plan.result.to}</strong></p>
          <h3>What will happen</h3>
          <ol class="plan">${plan.result.steps.map((step) => html`<li>${step}</li>`)}</ol>
          <h3>Guards that bind you</h3>
          <${Guards} guards=${plan.result.guards.filter((guard) => guard.binds_operator)} />
          <form onSubmit=${submit}>
            <label>Type <b>${view.name}</b> to confirm
              <input value=${typed} onInput=${(event) => setTyped(event.target.value)} autocomplete="off" spellcheck="false" />
            </label>
            ${wanting.length ? html`<p class="warn-text">The node refuses while a guard stands in the way.</p>` : ''}
            <${Failure} error=${start.error} />
            <button type="submit" class="danger" disabled=${typed !== view.name || start.busy}>Migrate to ${plan.result.to}</button>
          </form>`
      : ''}
  <//>`;
}
