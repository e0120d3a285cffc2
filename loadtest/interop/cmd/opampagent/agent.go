package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

// pauseCapability is the custom capability of the specification's example.
const pauseCapability = "io.opentelemetry.pause"

// agent is the state behind the client's callbacks.
type agent struct {
	connection client.OpAMPClient
	opts       options
	startedAt  time.Time

	// mutex guards what follows. It is not held while the library is called: the library calls back.
	mutex     sync.Mutex
	uid       uuid.UUID
	effective map[string]*protobufs.AgentConfigFile
	// pending is the remote config that is under way; a newer one replaces it.
	pending *protobufs.AgentRemoteConfig

	// applying keeps the reports about one remote config from falling between those about the next.
	applying sync.Mutex

	output sync.Mutex
}

func newAgent(connection client.OpAMPClient, opts options) *agent {
	return &agent{
		connection: connection,
		opts:       opts,
		startedAt:  time.Now(),
		uid:        opts.uid,
		effective:  map[string]*protobufs.AgentConfigFile{},
	}
}

func (a *agent) callbacks() types.Callbacks {
	return types.Callbacks{
		OnConnect: func(context.Context) { a.emit("connected", nil) },
		OnConnectFailed: func(_ context.Context, err error) {
			a.emit("connect_failed", fields{"error": err.Error()})
		},
		OnError: func(_ context.Context, response *protobufs.ServerErrorResponse) {
			a.emit("error_response", fields{
				"type":                    response.GetType().String(),
				"error":                   response.GetErrorMessage(),
				"retry_after_nanoseconds": response.GetRetryInfo().GetRetryAfterNanoseconds(),
			})
		},
		OnCommand: func(_ context.Context, command *protobufs.ServerToAgentCommand) error {
			a.emit("command", fields{"command": command.GetType().String()})
			return nil
		},
		OnMessage:          func(_ context.Context, message *types.MessageData) { a.onMessage(message) },
		GetEffectiveConfig: func(context.Context) (*protobufs.EffectiveConfig, error) { return a.effectiveConfig(), nil },
	}
}

func (a *agent) onMessage(message *types.MessageData) {
	if identification := message.AgentIdentification; identification != nil {
		a.adopt(uuid.UUID(identification.NewInstanceUid))
	}
	if offer := message.RemoteConfig; offer != nil {
		a.emit("remote_config", fields{"hash": hash(offer), "files": files(offer.GetConfig().GetConfigMap())})
		a.begin(offer)
	}
	if custom := message.CustomCapabilities; custom != nil {
		a.emit("custom_capabilities", fields{"capabilities": custom.GetCapabilities()})
	}
	if custom := message.CustomMessage; custom != nil {
		a.onCustomMessage(custom)
	}
}

// onCustomMessage tells of a message, and answers those of the pause capability as the specification shows.
func (a *agent) onCustomMessage(message *protobufs.CustomMessage) {
	a.emit("custom_message", fields{
		"capability": message.GetCapability(),
		"type":       message.GetType(),
		"data":       string(message.GetData()),
	})
	if message.GetCapability() != pauseCapability {
		return
	}
	status := fmt.Sprintf(`{"paused": %t}`, message.GetType() == "pause")
	_, err := a.connection.SendCustomMessage(&protobufs.CustomMessage{
		Capability: pauseCapability,
		Type:       "status",
		Data:       []byte(status),
	})
	if err != nil {
		a.emit("client_error", fields{"error": err.Error()})
	}
}

// adopt follows the library, which uses a new instance_uid from its next message on.
func (a *agent) adopt(uid uuid.UUID) {
	a.mutex.Lock()
	old := a.uid
	a.uid = uid
	a.mutex.Unlock()
	a.emit("new_uid", fields{"old_uid": old.String()})
}

// begin reports APPLYING and leaves the rest to finish.
func (a *agent) begin(offer *protobufs.AgentRemoteConfig) {
	a.applying.Lock()
	defer a.applying.Unlock()

	a.mutex.Lock()
	a.pending = offer
	a.mutex.Unlock()
	a.report(offer, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLYING, "")
	time.AfterFunc(a.opts.applyDelay, func() { a.finish(offer) })
}

// finish takes the offered files as the effective ones, or refuses them, unless a newer offer came.
func (a *agent) finish(offer *protobufs.AgentRemoteConfig) {
	a.applying.Lock()
	defer a.applying.Unlock()

	a.mutex.Lock()
	if a.pending != offer {
		a.mutex.Unlock()
		return
	}
	a.pending = nil
	received := offer.GetConfig().GetConfigMap()
	refusal := a.refusal(received)
	if refusal == "" {
		a.effective = maps.Clone(received)
	}
	a.mutex.Unlock()

	if refusal != "" {
		a.report(offer, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_FAILED, refusal)
		a.emit("failed", fields{"hash": hash(offer), "error": refusal})
		return
	}
	// The effective config goes first, so that no report says APPLIED and shows the old one.
	a.updateEffective()
	a.report(offer, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED, "")
	a.emit("applied", fields{"hash": hash(offer), "files": files(received)})
}

// refusal says why the files are not taken; empty if they are.
func (a *agent) refusal(received map[string]*protobufs.AgentConfigFile) string {
	if a.opts.reject == "" {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(received)) {
		if bytes.Contains(received[name].GetBody(), []byte(a.opts.reject)) {
			return fmt.Sprintf("%s: %q is not accepted", name, a.opts.reject)
		}
	}
	return ""
}

func (a *agent) report(offer *protobufs.AgentRemoteConfig, status protobufs.RemoteConfigStatuses, reason string) {
	// An offer without a hash is answered without one; the library wants an empty one for that.
	configHash := append([]byte{}, offer.GetConfigHash()...)
	err := a.connection.SetRemoteConfigStatus(&protobufs.RemoteConfigStatus{
		LastRemoteConfigHash: configHash,
		Status:               status,
		ErrorMessage:         reason,
	})
	if err != nil {
		a.emit("client_error", fields{"error": err.Error()})
	}
}

func (a *agent) updateEffective() {
	if err := a.connection.UpdateEffectiveConfig(context.Background()); err != nil {
		a.emit("client_error", fields{"error": err.Error()})
	}
}

// setEffective changes one file of the effective config, as somebody on the host would.
func (a *agent) setEffective(name, text string) {
	a.mutex.Lock()
	next := maps.Clone(a.effective)
	if next == nil {
		next = map[string]*protobufs.AgentConfigFile{}
	}
	next[name] = &protobufs.AgentConfigFile{Body: []byte(text), ContentType: "text/yaml"}
	a.effective = next
	a.mutex.Unlock()
	a.updateEffective()
}

// effectiveConfig shares no map with the state: files are replaced, never changed.
func (a *agent) effectiveConfig() *protobufs.EffectiveConfig {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return &protobufs.EffectiveConfig{ConfigMap: &protobufs.AgentConfigMap{ConfigMap: maps.Clone(a.effective)}}
}

func (a *agent) setHealth(healthy bool, reason string) error {
	health := &protobufs.ComponentHealth{
		Healthy:            healthy,
		StartTimeUnixNano:  uint64(a.startedAt.UnixNano()),
		Status:             "StatusOK",
		StatusTimeUnixNano: uint64(time.Now().UnixNano()),
		LastError:          reason,
	}
	if !healthy {
		health.Status = "StatusRecoverableError"
	}
	return a.connection.SetHealth(health)
}

// fields is what an event has beside its name and the agent's uid.
type fields map[string]any

// emit writes one event to standard output.
func (a *agent) emit(event string, more fields) {
	a.mutex.Lock()
	line := fields{"event": event, "uid": a.uid.String()}
	a.mutex.Unlock()
	maps.Copy(line, more)
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	a.output.Lock()
	defer a.output.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

func hash(offer *protobufs.AgentRemoteConfig) string {
	return hex.EncodeToString(offer.GetConfigHash())
}

// file is one config file of an event.
type file struct {
	Body        string `json:"body"`
	ContentType string `json:"content_type"`
}

func files(config map[string]*protobufs.AgentConfigFile) map[string]file {
	out := map[string]file{}
	for name, content := range config {
		out[name] = file{Body: string(content.GetBody()), ContentType: content.GetContentType()}
	}
	return out
}
