package main

import (
	"strings"
	"testing"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// This host is looked at when asked for.
func TestLintHere(t *testing.T) {
	hosttest.Need(t)
	dir := someImage(t, nil)
	mustTool(t, "lint", "-D", dir)
	status, text, _ := tool(t, "lint", "-D", dir, "--here")
	if status != statusPartly || !strings.Contains(text, "refused by host     10.0.0.1:80 -> 10.0.0.2:1234: address: "+soccr.ErrAddrNotAvailable.Error()) ||
		!strings.Contains(text, "ip address add") {
		t.Errorf("status %d, %s", status, text)
	}
	here := t.TempDir()
	mustTool(t, "rewrite", "-D", dir, "-o", here+"/image", "--map-local", "10.0.0.1=127.0.0.1", "--map-remote", "10.0.0.2=127.0.0.2")
	if text := mustTool(t, "lint", "-D", here+"/image", "--here"); !strings.HasPrefix(text, "2 sockets, 0 reasons") {
		t.Error(text)
	}
}
