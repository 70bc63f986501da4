// Shown when the node asks for a token.
import { login } from '../api.js';
import { connect } from '../live.js';
import { Failure, html, useAction } from '../ui.js';

export function Login() {
  const [state, run] = useAction(async (token) => {
    await login(token);
    connect();
  });
  const submit = (event) => {
    event.preventDefault();
    run(new FormData(event.target).get('token').trim());
  };
  return html`<form class="card login" onSubmit=${submit} aria-labelledby="login-title">
    <h1 id="login-title">Log in</h1>
    <p class="muted">This node asks who you are. A token is made with <code>godwit token create</code>.</p>
    <label>Token <input name="token" type="password" autocomplete="current-password" required /></label>
    <${Failure} error=${state.error} />
    <button type="submit" class="primary" disabled=${state.busy}>Log in</button>
  </form>`;
}
