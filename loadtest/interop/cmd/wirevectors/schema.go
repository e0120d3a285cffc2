package main

import (
	"fmt"
	"slices"

	"github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// schema lists, one line each and sorted, every message, field and enum value that opamp-go knows,
// without the package:
//
//	message AgentDisconnect
//	AgentConfigMap.config_map = 1 map<string, AgentConfigFile>
//	AnyValue.bool_value = 2 oneof value bool
//	CommandType.CommandType_Restart = 0
func schema() []string {
	var lines []string
	for _, file := range []protoreflect.FileDescriptor{
		protobufs.File_anyvalue_proto, protobufs.File_opamp_proto,
	} {
		for i := range file.Messages().Len() {
			message := file.Messages().Get(i)
			lines = append(lines, fmt.Sprintf("message %s", message.Name()))
			for j := range message.Fields().Len() {
				field := message.Fields().Get(j)
				lines = append(lines, fmt.Sprintf("%s.%s = %d %s", message.Name(), field.Name(), field.Number(), shape(field)))
			}
		}
		for i := range file.Enums().Len() {
			enum := file.Enums().Get(i)
			for j := range enum.Values().Len() {
				value := enum.Values().Get(j)
				lines = append(lines, fmt.Sprintf("%s.%s = %d", enum.Name(), value.Name(), value.Number()))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// shape is what must agree, beside the number, for two implementations to read a field alike.
func shape(field protoreflect.FieldDescriptor) string {
	switch {
	case field.IsMap():
		return fmt.Sprintf("map<%s, %s>", typeName(field.MapKey()), typeName(field.MapValue()))
	case field.IsList():
		return "repeated " + typeName(field)
	case field.ContainingOneof() != nil:
		return fmt.Sprintf("oneof %s %s", field.ContainingOneof().Name(), typeName(field))
	default:
		return typeName(field)
	}
}

func typeName(field protoreflect.FieldDescriptor) string {
	switch {
	case field.Message() != nil:
		return string(field.Message().Name())
	case field.Enum() != nil:
		return string(field.Enum().Name())
	default:
		return field.Kind().String()
	}
}
