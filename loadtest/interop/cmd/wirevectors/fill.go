package main

import (
	"fmt"
	"hash/fnv"

	"github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxNesting is how often one message type may occur on the way down to a field. Two lets every
// recursive type hold itself once.
const maxNesting = 2

// fill sets every field of m, and of the messages inside it, to a value that follows from the
// field's path alone. No two fields get the same value, so that mixed-up fields show.
//
// A repeated message field gets as many elements as its type has alternatives to show.
func fill(m protoreflect.Message) {
	filler{nesting: map[protoreflect.FullName]int{}}.message(m, "", 0)
}

type filler struct {
	nesting map[protoreflect.FullName]int
}

func (f filler) message(m protoreflect.Message, path string, variant int) {
	if f.full(m.Descriptor()) {
		return
	}
	name := m.Descriptor().FullName()
	f.nesting[name]++
	defer func() { f.nesting[name]-- }()

	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if oneof := field.ContainingOneof(); oneof != nil {
			if oneof.Fields().Get(variant%oneof.Fields().Len()) != field {
				continue
			}
		}
		f.field(m, field, fmt.Sprintf("%s/%d", path, field.Number()), variant)
	}
	f.unreleased(m, path)
}

// unreleased adds what the specification has and opamp-go cannot name yet, as raw fields. Their
// numbers come after all others, as the order of the wire format wants it.
func (f filler) unreleased(m protoreflect.Message, path string) {
	attributes := protowire.Number(7)
	if m.Descriptor().Name() != "ComponentHealth" || m.Descriptor().Fields().ByNumber(attributes) != nil {
		return
	}
	list := &protobufs.KeyValueList{}
	f.message(list.ProtoReflect(), fmt.Sprintf("%s/%d", path, attributes), 0)
	var raw protoreflect.RawFields
	for _, pair := range list.Values {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(pair)
		if err != nil {
			panic(err)
		}
		raw = protowire.AppendBytes(protowire.AppendTag(raw, attributes, protowire.BytesType), body)
	}
	m.SetUnknown(raw)
}

// full tells whether another message of this type would be nested too deeply. Such a message is
// left empty, and a map or list gets none.
func (f filler) full(d protoreflect.MessageDescriptor) bool {
	return f.nesting[d.FullName()] == maxNesting
}

func (f filler) field(m protoreflect.Message, field protoreflect.FieldDescriptor, path string, variant int) {
	switch {
	case field.IsMap():
		if value := field.MapValue().Message(); value != nil && f.full(value) {
			return
		}
		entries := m.Mutable(field).Map()
		key := scalar(field.MapKey(), path+"/key").MapKey()
		if field.MapValue().Message() != nil {
			value := entries.NewValue()
			f.message(value.Message(), path+"/value", variant)
			entries.Set(key, value)
		} else {
			entries.Set(key, scalar(field.MapValue(), path+"/value"))
		}
	case field.IsList():
		if field.Message() != nil && f.full(field.Message()) {
			return
		}
		list := m.Mutable(field).List()
		if field.Message() == nil {
			for i := range 2 {
				list.Append(scalar(field, fmt.Sprintf("%s/%d", path, i)))
			}
			return
		}
		for i := range max(2, alternatives(field.Message(), map[protoreflect.FullName]bool{})) {
			f.message(list.AppendMutable().Message(), fmt.Sprintf("%s/%d", path, i), i)
		}
	case field.Message() != nil:
		f.message(m.Mutable(field).Message(), path, variant)
	default:
		m.Set(field, scalar(field, path))
	}
}

// alternatives counts the variants that show every oneof alternative of a message, its own and
// those of its singular message fields.
func alternatives(d protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) int {
	if seen[d.FullName()] {
		return 1
	}
	seen[d.FullName()] = true
	most := 1
	for i := range d.Oneofs().Len() {
		most = max(most, d.Oneofs().Get(i).Fields().Len())
	}
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		if field.Message() != nil && !field.IsList() && !field.IsMap() {
			most = max(most, alternatives(field.Message(), seen))
		}
	}
	return most
}

// scalar makes the value of one field that is not a message. It is never the type's default.
func scalar(field protoreflect.FieldDescriptor, path string) protoreflect.Value {
	sum := fnv.New64a()
	sum.Write([]byte(path))
	number := sum.Sum64() | 1
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		// An enum with nothing but its default gets a value from the future.
		if values := field.Enum().Values(); values.Len() > 1 {
			return protoreflect.ValueOfEnum(values.Get(values.Len() - 1).Number())
		}
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(number))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(number)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(number%1_000_000) / 64)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("%s %x", field.Name(), uint32(number)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(sum.Sum(nil))
	default:
		panic(fmt.Sprintf("%s: no value for kind %s", field.FullName(), field.Kind()))
	}
}
