// An issuer of tokens for people, on another implementation of OpenID Connect (oidc-provider).
//
// It prints its own address, and then for each line of standard input that names a role a token that says so.
'use strict';

const http = require('node:http');
const path = require('node:path');
const readline = require('node:readline');
const { pathToFileURL } = require('node:url');

const AUDIENCE = 'muster';
const RESOURCE = 'https://muster.example';
const CLIENT = { id: 'ana', secret: 'a secret between the provider and this script' };

async function main() {
  // The package is a module, which NODE_PATH does not find by itself.
  const file = path.join(process.env.NODE_PATH, 'oidc-provider', 'lib', 'index.js');
  const { default: Provider } = await import(pathToFileURL(file));
  const server = http.createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const issuer = `http://127.0.0.1:${server.address().port}`;
  let role = 'viewer';
  const provider = new Provider(issuer, {
    clients: [{
      client_id: CLIENT.id,
      client_secret: CLIENT.secret,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    }],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: '',
          audience: AUDIENCE,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    extraTokenClaims: () => ({ muster_role: ['something else', role], muster_tenant: 'default' }),
  });
  server.on('request', provider.callback());
  console.log(issuer);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    role = line.trim();
    const answer = await fetch(`${issuer}/token`, {
      method: 'POST',
      headers: {
        authorization: `Basic ${Buffer.from(`${CLIENT.id}:${encodeURIComponent(CLIENT.secret)}`).toString('base64')}`,
        'content-type': 'application/x-www-form-urlencoded',
      },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource: RESOURCE }),
    });
    const token = await answer.json();
    console.log(token.access_token ?? `refused: ${JSON.stringify(token)}`);
  }
  process.exit(0);
}

main();
