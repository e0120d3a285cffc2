// Command wirevectors writes OpAMP messages as the opamp-go protobufs encode them, so that
// another implementation of the wire format can be compared with it.
//
// Into the output directory go one file a message (<name>.bin), index.json with the name and
// message type of each, and schema.txt with every field and enum value that opamp-go knows.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
)

// entry is one line of index.json.
type entry struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

func main() {
	dir := flag.String("out", "../../proto/tests/vectors", "directory to write to")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "wirevectors:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	stale, err := filepath.Glob(filepath.Join(dir, "*.bin"))
	if err != nil {
		return err
	}
	for _, file := range stale {
		if err := os.Remove(file); err != nil {
			return err
		}
	}

	var index []entry
	for _, v := range vectors() {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(v.message)
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, v.name+".bin"), body, 0o644); err != nil {
			return err
		}
		index = append(index, entry{Name: v.name, Message: string(v.message.ProtoReflect().Descriptor().Name())})
	}
	text, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	lines := strings.Join(schema(), "\n") + "\n"
	return os.WriteFile(filepath.Join(dir, "schema.txt"), []byte(lines), 0o644)
}
