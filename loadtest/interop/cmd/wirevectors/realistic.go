package main

import (
	"crypto/sha256"
	"math"

	pb "github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/proto"
)

// vector is one message with the name of its file.
type vector struct {
	name    string
	message proto.Message
}

const (
	startedAt = 1_784_800_000_000_000_000
	collector = "receivers:\n  otlp:\n    protocols:\n      grpc:\nexporters:\n  debug:\n" +
		"service:\n  pipelines:\n    traces:\n      receivers: [otlp]\n      exporters: [debug]\n"
)

var (
	uid    = []byte{0x01, 0x98, 0x3d, 0x2a, 0x7c, 0x10, 0x7a, 0x55, 0x9b, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07}
	newUID = []byte{0x01, 0x98, 0x3d, 0x2b, 0x00, 0x00, 0x7b, 0x66, 0xa0, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9}
)

// vectors lists every message that is written, in the order of index.json.
func vectors() []vector {
	agent, server := &pb.AgentToServer{}, &pb.ServerToAgent{}
	fill(agent.ProtoReflect())
	fill(server.ProtoReflect())
	return append([]vector{
		{"agent_to_server_full", agent},
		{"server_to_agent_full", server},
	}, append(fromAgents(), fromServers()...)...)
}

func fromAgents() []vector {
	capabilities := uint64(pb.AgentCapabilities_AgentCapabilities_ReportsStatus |
		pb.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig |
		pb.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig |
		pb.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig |
		pb.AgentCapabilities_AgentCapabilities_ReportsHealth |
		pb.AgentCapabilities_AgentCapabilities_ReportsHeartbeat |
		pb.AgentCapabilities_AgentCapabilities_ReportsAvailableComponents)
	hash := sha256.Sum256([]byte(collector))

	first := &pb.AgentToServer{
		InstanceUid:  uid,
		Capabilities: capabilities,
		AgentDescription: &pb.AgentDescription{
			IdentifyingAttributes: []*pb.KeyValue{
				text("service.name", "io.opentelemetry.collector"),
				text("service.version", "0.131.0"),
				text("service.instance.id", "01983d2a-7c10-7a55-9b01-020304050607"),
			},
			NonIdentifyingAttributes: []*pb.KeyValue{
				text("os.type", "linux"),
				text("host.name", "bücher-7"),
				pair("host.cpu.count", &pb.AnyValue{Value: &pb.AnyValue_IntValue{IntValue: 16}}),
			},
		},
		Health: &pb.ComponentHealth{
			StartTimeUnixNano:  startedAt,
			Status:             "StatusStarting",
			StatusTimeUnixNano: startedAt + 5,
		},
		// A supervisor keeps the whole configuration under the empty name.
		EffectiveConfig: &pb.EffectiveConfig{ConfigMap: &pb.AgentConfigMap{
			ConfigMap: map[string]*pb.AgentConfigFile{"": {Body: []byte(collector), ContentType: "text/yaml"}},
		}},
		RemoteConfigStatus:  &pb.RemoteConfigStatus{},
		PackageStatuses:     &pb.PackageStatuses{},
		CustomCapabilities:  &pb.CustomCapabilities{},
		AvailableComponents: &pb.AvailableComponents{Hash: hash[:8]},
	}

	return []vector{
		{"agent_first_report", first},
		{"agent_first_after_reconnect", &pb.AgentToServer{InstanceUid: uid, SequenceNum: 300, Capabilities: capabilities}},
		{"agent_applying", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 301, Capabilities: capabilities,
			RemoteConfigStatus: &pb.RemoteConfigStatus{
				LastRemoteConfigHash: hash[:],
				Status:               pb.RemoteConfigStatuses_RemoteConfigStatuses_APPLYING,
			},
		}},
		{"agent_failed", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 302, Capabilities: capabilities,
			RemoteConfigStatus: &pb.RemoteConfigStatus{
				LastRemoteConfigHash: hash[:],
				Status:               pb.RemoteConfigStatuses_RemoteConfigStatuses_FAILED,
				ErrorMessage:         "service::pipelines::traces: references exporter \"otlp/none\" which is not configured",
			},
		}},
		{"agent_empty_config_file", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 303, Capabilities: capabilities,
			EffectiveConfig: &pb.EffectiveConfig{ConfigMap: &pb.AgentConfigMap{
				ConfigMap: map[string]*pb.AgentConfigFile{"empty.yaml": {}},
			}},
		}},
		{"agent_several_config_files", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 304, Capabilities: capabilities,
			EffectiveConfig: &pb.EffectiveConfig{ConfigMap: &pb.AgentConfigMap{
				ConfigMap: map[string]*pb.AgentConfigFile{
					"default/one":   {Body: []byte(collector), ContentType: "text/yaml"},
					"default/three": {Body: []byte{0, 0xff, 0xfe}, ContentType: "application/octet-stream"},
					"default/two":   {Body: []byte("{}"), ContentType: "application/json"},
				},
			}},
		}},
		{"agent_certificate_request", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 305, Capabilities: capabilities,
			ConnectionSettingsRequest: &pb.ConnectionSettingsRequest{
				Opamp: &pb.OpAMPConnectionSettingsRequest{CertificateRequest: &pb.CertificateRequest{
					Csr: []byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"),
				}},
			},
		}},
		{"agent_wants_uid", &pb.AgentToServer{
			InstanceUid: uid, Capabilities: capabilities,
			Flags: uint64(pb.AgentToServerFlags_AgentToServerFlags_RequestInstanceUid),
		}},
		{"agent_disconnect", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: math.MaxUint64, Capabilities: capabilities,
			AgentDisconnect: &pb.AgentDisconnect{},
		}},
		{"agent_odd_values", &pb.AgentToServer{
			InstanceUid: uid, SequenceNum: 1, Capabilities: math.MaxUint64,
			AgentDescription: &pb.AgentDescription{NonIdentifyingAttributes: oddValues()},
			RemoteConfigStatus: &pb.RemoteConfigStatus{
				Status: pb.RemoteConfigStatuses(77),
			},
			ConnectionSettingsStatus: &pb.ConnectionSettingsStatus{
				Status: pb.ConnectionSettingsStatuses(-1),
			},
		}},
	}
}

// oddValues holds values that a default-skipping encoder may lose.
func oddValues() []*pb.KeyValue {
	return []*pb.KeyValue{
		{},
		{Key: "no value"},
		pair("null", &pb.AnyValue{}),
		text("", "no key"),
		text("empty text", ""),
		pair("false", &pb.AnyValue{Value: &pb.AnyValue_BoolValue{}}),
		pair("zero", &pb.AnyValue{Value: &pb.AnyValue_IntValue{}}),
		pair("minus one", &pb.AnyValue{Value: &pb.AnyValue_IntValue{IntValue: -1}}),
		pair("lowest", &pb.AnyValue{Value: &pb.AnyValue_IntValue{IntValue: math.MinInt64}}),
		pair("zero point zero", &pb.AnyValue{Value: &pb.AnyValue_DoubleValue{}}),
		pair("minus zero", &pb.AnyValue{Value: &pb.AnyValue_DoubleValue{DoubleValue: math.Copysign(0, -1)}}),
		pair("infinity", &pb.AnyValue{Value: &pb.AnyValue_DoubleValue{DoubleValue: math.Inf(-1)}}),
		pair("no bytes", &pb.AnyValue{Value: &pb.AnyValue_BytesValue{BytesValue: []byte{}}}),
		pair("no elements", &pb.AnyValue{Value: &pb.AnyValue_ArrayValue{ArrayValue: &pb.ArrayValue{}}}),
		pair("no entries", &pb.AnyValue{Value: &pb.AnyValue_KvlistValue{KvlistValue: &pb.KeyValueList{}}}),
	}
}

func fromServers() []vector {
	capabilities := uint64(pb.ServerCapabilities_ServerCapabilities_AcceptsStatus |
		pb.ServerCapabilities_ServerCapabilities_OffersRemoteConfig |
		pb.ServerCapabilities_ServerCapabilities_AcceptsEffectiveConfig)
	hash := sha256.Sum256([]byte(collector))
	return []vector{
		{"server_reply", &pb.ServerToAgent{InstanceUid: uid}},
		{"server_first_reply", &pb.ServerToAgent{
			InstanceUid: uid, Capabilities: capabilities,
			Flags: uint64(pb.ServerToAgentFlags_ServerToAgentFlags_ReportFullState),
		}},
		{"server_remote_config", &pb.ServerToAgent{
			InstanceUid: uid, Capabilities: capabilities,
			RemoteConfig: &pb.AgentRemoteConfig{
				Config: &pb.AgentConfigMap{ConfigMap: map[string]*pb.AgentConfigFile{
					"collector.yaml": {Body: []byte(collector), ContentType: "text/yaml"},
				}},
				ConfigHash: hash[:],
			},
		}},
		{"server_bad_request", &pb.ServerToAgent{
			InstanceUid: uid,
			ErrorResponse: &pb.ServerErrorResponse{
				Type:         pb.ServerErrorResponseType_ServerErrorResponseType_BadRequest,
				ErrorMessage: "instance_uid has 26 bytes instead of 16",
			},
		}},
		{"server_unavailable", &pb.ServerToAgent{
			InstanceUid: uid,
			ErrorResponse: &pb.ServerErrorResponse{
				Type:    pb.ServerErrorResponseType_ServerErrorResponseType_Unavailable,
				Details: &pb.ServerErrorResponse_RetryInfo{RetryInfo: &pb.RetryInfo{RetryAfterNanoseconds: 45_000_000_000}},
			},
		}},
		{"server_new_uid", &pb.ServerToAgent{
			InstanceUid: uid, AgentIdentification: &pb.AgentIdentification{NewInstanceUid: newUID},
		}},
		{"server_restart", &pb.ServerToAgent{InstanceUid: uid, Command: &pb.ServerToAgentCommand{}}},
		{"server_heartbeat_off", &pb.ServerToAgent{
			InstanceUid: uid,
			ConnectionSettings: &pb.ConnectionSettingsOffers{
				Hash: hash[:],
				Opamp: &pb.OpAMPConnectionSettings{
					DestinationEndpoint: "wss://opamp.example.com:4320/v1/opamp",
					Headers: &pb.Headers{Headers: []*pb.Header{
						{Key: "Authorization", Value: "Bearer example"},
						{Key: "X-Empty"},
					}},
					Tls: &pb.TLSConnectionSettings{},
				},
				OtherConnections: map[string]*pb.OtherConnectionSettings{
					"kafka": {OtherSettings: map[string]string{"topic": ""}},
				},
			},
		}},
		{"server_packages", &pb.ServerToAgent{
			InstanceUid: uid,
			PackagesAvailable: &pb.PackagesAvailable{
				AllPackagesHash: hash[:4],
				Packages: map[string]*pb.PackageAvailable{
					"": {
						Version: "0.132.0",
						File:    &pb.DownloadableFile{DownloadUrl: "https://example.com/otelcol", ContentHash: hash[:]},
						Hash:    hash[4:8],
					},
					"rules": {
						Type:    pb.PackageType_PackageType_Addon,
						Version: "7",
						File:    &pb.DownloadableFile{DownloadUrl: "https://example.com/rules", ContentHash: hash[:]},
						Hash:    hash[8:12],
					},
				},
			},
		}},
	}
}

func pair(key string, value *pb.AnyValue) *pb.KeyValue {
	return &pb.KeyValue{Key: key, Value: value}
}

func text(key, value string) *pb.KeyValue {
	return pair(key, &pb.AnyValue{Value: &pb.AnyValue_StringValue{StringValue: value}})
}
