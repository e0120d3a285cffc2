// Command opampagent is an OpAMP agent for tests, made of the opamp-go client library.
//
// It behaves like a supervisor of a collector: it reports who it is and how it is, takes any remote
// configuration as its effective one, and says how that went. Every event is one JSON object on
// standard output; standard input takes commands. README.md lists both.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

// stopTimeout bounds a graceful stop: the library waits up to 5 s for the server's Close.
const stopTimeout = 10 * time.Second

// options are the command line.
type options struct {
	server       string
	transport    string
	uid          uuid.UUID
	attributes   pairs
	headers      pairs
	capabilities names
	custom       names
	reject       string
	applyDelay   time.Duration
	healthy      bool
	heartbeat    time.Duration
	requestUid   bool
	gzip         bool
	verbose      bool
}

func main() {
	opts, err := parse(os.Args[1:])
	if err == nil {
		err = run(opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "opampagent:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var opts options
	var uid string
	flags := flag.NewFlagSet("opampagent", flag.ExitOnError)
	flags.StringVar(&opts.server, "server", "ws://127.0.0.1:4320/v1/opamp", "URL of the server")
	flags.StringVar(&opts.transport, "transport", "ws", "ws or http")
	flags.StringVar(&uid, "uid", "", "instance_uid as a UUID; by default a new UUIDv7")
	flags.Var(&opts.attributes, "attr", "key=value, may be repeated; identifying if the key starts with service.")
	flags.Var(&opts.headers, "header", "key=value of an HTTP header, may be repeated")
	flags.Var(&opts.capabilities, "capability", "a further agent capability by name, such as AcceptsRestartCommand; may be repeated")
	flags.Var(&opts.custom, "custom-capability", "a custom capability, such as io.opentelemetry.pause, which it obeys; may be repeated")
	flags.StringVar(&opts.reject, "reject", "", "answer FAILED to a remote config with this text in a file")
	flags.DurationVar(&opts.applyDelay, "apply-delay", 0, "time from APPLYING to APPLIED or FAILED")
	flags.BoolVar(&opts.healthy, "healthy", true, "the health to start with")
	flags.DurationVar(&opts.heartbeat, "heartbeat", 30*time.Second, "time between heartbeats; with http between polls")
	flags.BoolVar(&opts.requestUid, "request-uid", false, "ask the server for another instance_uid in the first report")
	flags.BoolVar(&opts.gzip, "gzip", false, "compress what is sent")
	flags.BoolVar(&opts.verbose, "verbose", false, "write the library's log to standard error")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if flags.NArg() > 0 {
		return opts, fmt.Errorf("%q is not a flag", flags.Arg(0))
	}
	var err error
	if uid == "" {
		opts.uid, err = uuid.NewV7()
	} else {
		opts.uid, err = uuid.Parse(uid)
	}
	return opts, err
}

func run(opts options) error {
	var logger types.Logger
	if opts.verbose {
		logger = stderrLogger{}
	}
	var connection client.OpAMPClient
	switch opts.transport {
	case "ws":
		connection = client.NewWebSocket(logger)
	case "http":
		connection = client.NewHTTP(logger)
	default:
		return fmt.Errorf("transport %q is neither ws nor http", opts.transport)
	}
	capabilities, err := capabilityBits(opts.capabilities)
	if err != nil {
		return err
	}

	a := newAgent(connection, opts)
	if err := connection.SetAgentDescription(description(opts)); err != nil {
		return err
	}
	if err := a.setHealth(opts.healthy, ""); err != nil {
		return err
	}
	if err := connection.SetCapabilities(&capabilities); err != nil {
		return err
	}
	if len(opts.custom) > 0 {
		custom := &protobufs.CustomCapabilities{Capabilities: opts.custom}
		if err := connection.SetCustomCapabilities(custom); err != nil {
			return err
		}
	}

	if opts.requestUid {
		connection.SetFlags(protobufs.AgentToServerFlags_AgentToServerFlags_RequestInstanceUid)
	}

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	header := http.Header{}
	for _, p := range opts.headers {
		header.Add(p.key, p.value)
	}
	a.emit("started", nil)
	err = connection.Start(ctx, types.StartSettings{
		OpAMPServerURL:    opts.server,
		Header:            header,
		InstanceUid:       types.InstanceUid(opts.uid),
		HeartbeatInterval: &opts.heartbeat,
		EnableCompression: opts.gzip,
		Callbacks:         a.callbacks(),
	})
	if err != nil {
		return err
	}

	goodbye := a.waitForEnd(ctx)
	if !goodbye {
		return nil
	}
	stopping, cancelStop := context.WithTimeout(context.Background(), stopTimeout)
	defer cancelStop()
	if err := connection.Stop(stopping); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	a.emit("stopped", nil)
	return nil
}

// capabilityBits are those of a supervisor and the named ones.
func capabilityBits(extra []string) (protobufs.AgentCapabilities, error) {
	bits := protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus |
		protobufs.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHeartbeat
	for _, name := range extra {
		bit, known := protobufs.AgentCapabilities_value["AgentCapabilities_"+name]
		if !known {
			return 0, fmt.Errorf("there is no agent capability %q", name)
		}
		bits |= protobufs.AgentCapabilities(bit)
	}
	return bits, nil
}

// description holds the attributes of the command line, and a service.name and service.instance.id
// where those are not given.
func description(opts options) *protobufs.AgentDescription {
	attributes := slices.Clone(opts.attributes)
	for _, fallback := range []pair{
		{"service.name", "opampagent"},
		{"service.instance.id", opts.uid.String()},
	} {
		if !slices.ContainsFunc(attributes, func(p pair) bool { return p.key == fallback.key }) {
			attributes = append(attributes, fallback)
		}
	}
	d := &protobufs.AgentDescription{}
	for _, p := range attributes {
		attribute := &protobufs.KeyValue{
			Key:   p.key,
			Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: p.value}},
		}
		if strings.HasPrefix(p.key, "service.") {
			d.IdentifyingAttributes = append(d.IdentifyingAttributes, attribute)
		} else {
			d.NonIdentifyingAttributes = append(d.NonIdentifyingAttributes, attribute)
		}
	}
	return d
}

// pair is one key=value of the command line.
type pair struct{ key, value string }

// pairs collects a repeated key=value flag.
type pairs []pair

func (p *pairs) String() string { return "" }

func (p *pairs) Set(text string) error {
	key, value, found := strings.Cut(text, "=")
	if !found || key == "" {
		return fmt.Errorf("%q is not key=value", text)
	}
	*p = append(*p, pair{key, value})
	return nil
}

// names collects a repeated flag.
type names []string

func (n *names) String() string { return "" }

func (n *names) Set(text string) error {
	*n = append(*n, text)
	return nil
}

// stderrLogger shows what the library does.
type stderrLogger struct{}

func (stderrLogger) Debugf(_ context.Context, format string, v ...any) {
	fmt.Fprintf(os.Stderr, "debug: "+format+"\n", v...)
}

func (stderrLogger) Errorf(_ context.Context, format string, v ...any) {
	fmt.Fprintf(os.Stderr, "error: "+format+"\n", v...)
}
