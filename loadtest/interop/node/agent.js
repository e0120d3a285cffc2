// An OpAMP agent for tests, made of the Node client. ../README.md says how it is driven.
//
// It takes any remote config and reports APPLYING, then APPLIED or FAILED, as the Go program beside it
// does; the client cannot report an effective config. Every event is a line of JSON on standard output.
'use strict';

const {subscribe} = require('node:diagnostics_channel');
const readline = require('node:readline');
const {parseArgs} = require('node:util');
const {
    AgentCapabilities,
    DIAG_CH_SEND_FAIL,
    DIAG_CH_SEND_SUCCESS,
    RemoteConfigStatuses,
    createOpAMPClient,
} = require('@elastic/opamp-client-node');

const {values: options} = parseArgs({
    options: {
        server: {type: 'string'},
        transport: {type: 'string', default: 'http'},
        uid: {type: 'string'},
        attr: {type: 'string', multiple: true, default: []},
        header: {type: 'string', multiple: true, default: []},
        reject: {type: 'string'},
        'apply-delay': {type: 'string', default: '0ms'},
        heartbeat: {type: 'string', default: '30s'},
    },
});

// Milliseconds of a duration such as 100ms or 2s.
function milliseconds(text) {
    const found = /^([0-9.]+)(ms|s)$/.exec(text);
    if (!found) {
        throw new Error(`${text} is not a duration such as 100ms`);
    }
    return Number(found[1]) * (found[2] === 's' ? 1000 : 1);
}

function pairs(texts) {
    return Object.fromEntries(
        texts.map((text) => {
            const at = text.indexOf('=');
            return [text.slice(0, at), text.slice(at + 1)];
        })
    );
}

const hex = (bytes) => Buffer.from(bytes).toString('hex');

function emit(event, fields) {
    const digits = hex(client.getInstanceUid());
    const uid = digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
    process.stdout.write(JSON.stringify({event, uid, ...fields}) + '\n');
}

function report(hash, status, errorMessage) {
    client.setRemoteConfigStatus({lastRemoteConfigHash: hash, status, errorMessage});
}

function settle(hash, files) {
    const bodies = Object.values(files).map((file) => file.body);
    if (options.reject !== undefined && bodies.some((body) => body.includes(options.reject))) {
        const error = `the configuration holds ${options.reject}`;
        report(hash, RemoteConfigStatuses.RemoteConfigStatuses_FAILED, error);
        emit('failed', {hash: hex(hash), error});
        return;
    }
    report(hash, RemoteConfigStatuses.RemoteConfigStatuses_APPLIED, '');
    emit('applied', {hash: hex(hash), files});
}

function onMessage({remoteConfig}) {
    if (!remoteConfig) {
        return;
    }
    const files = {};
    for (const [name, file] of Object.entries(remoteConfig.config.configMap)) {
        files[name] = {body: Buffer.from(file.body).toString('utf8'), content_type: file.contentType};
    }
    emit('remote_config', {hash: hex(remoteConfig.configHash), files});
    report(remoteConfig.configHash, RemoteConfigStatuses.RemoteConfigStatuses_APPLYING, '');
    setTimeout(settle, milliseconds(options['apply-delay']), remoteConfig.configHash, files);
}

const client = createOpAMPClient({
    endpoint: options.server,
    headers: pairs(options.header),
    instanceUid: options.uid,
    heartbeatIntervalSeconds: milliseconds(options.heartbeat) / 1000,
    capabilities:
        BigInt(AgentCapabilities.AgentCapabilities_AcceptsRemoteConfig) |
        BigInt(AgentCapabilities.AgentCapabilities_ReportsRemoteConfig),
    onMessage,
    diagEnabled: true,
});
subscribe(DIAG_CH_SEND_SUCCESS, () => emit('connected', {}));
subscribe(DIAG_CH_SEND_FAIL, ({err}) => emit('connect_failed', {error: String(err)}));

const attributes = Object.entries({'service.name': 'node-agent', ...pairs(options.attr)});
const identifies = ([key]) => key.startsWith('service.');
client.setAgentDescription({
    identifyingAttributes: Object.fromEntries(attributes.filter(identifies)),
    nonIdentifyingAttributes: Object.fromEntries(attributes.filter((pair) => !identifies(pair))),
});
emit('started', {});
client.start();

async function stop() {
    await client.shutdown();
    emit('stopped', {});
    process.exit(0);
}

const input = readline.createInterface({input: process.stdin});
input.on('line', (line) => {
    if (line.trim() === 'disconnect') {
        input.close();
    } else {
        emit('bad_command', {error: `there is no command ${line.trim()}`});
    }
});
input.on('close', stop);
