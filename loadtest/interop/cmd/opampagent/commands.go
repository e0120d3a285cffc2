package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// waitForEnd runs the commands of standard input until one of them, a signal or the end of a pipe
// says stop. It returns whether to say goodbye to the server.
func (a *agent) waitForEnd(ctx context.Context) bool {
	lines := make(chan string)
	go readLines(lines)
	for {
		select {
		case <-ctx.Done():
			return true
		case line, open := <-lines:
			if !open {
				return true
			}
			switch strings.TrimSpace(line) {
			case "disconnect":
				return true
			case "quit":
				return false
			case "":
			default:
				if err := a.command(line); err != nil {
					a.emit("bad_command", fields{"error": err.Error()})
				}
			}
		}
	}
}

// readLines closes the channel when a pipe ends: then whoever started the agent is gone. The end
// of a terminal or of /dev/null says nothing.
func readLines(lines chan<- string) {
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if line != "" {
			lines <- strings.TrimRight(line, "\r\n")
		}
		if err != nil {
			break
		}
	}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 {
		close(lines)
	}
}

func (a *agent) command(line string) error {
	name, rest, _ := strings.Cut(line, " ")
	first, text, given := strings.Cut(rest, " ")
	switch name {
	case "health":
		healthy, err := strconv.ParseBool(first)
		if err != nil {
			return fmt.Errorf("health: %q is neither true nor false", first)
		}
		return a.setHealth(healthy, text)
	case "effective":
		if !given {
			return fmt.Errorf("effective: wants a file name and a text")
		}
		a.setEffective(first, text)
		return nil
	default:
		return fmt.Errorf("there is no command %q", name)
	}
}
