package criuimg_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	tcpstream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"google.golang.org/protobuf/proto"
)

// critDecodes has go-criu's crit decode all images of a directory.
func critDecodes(t *testing.T, dir string) map[string]*crit.CriuImage {
	t.Helper()
	decoded := map[string]*crit.CriuImage{}
	for _, path := range must(filepath.Glob(filepath.Join(dir, "*.img")))(t) {
		name := filepath.Base(path)
		kind, _, _ := strings.Cut(strings.TrimSuffix(name, ".img"), "-")
		message, ok := map[string]proto.Message{
			"files": &fdinfo.FileEntry{}, "inetsk": &inetsk.InetSkEntry{}, "fdinfo": &fdinfo.FdinfoEntry{},
			"inventory": &inventory.InventoryEntry{}, "tcp": &tcpstream.TcpStreamEntry{},
		}[kind]
		if !ok {
			t.Fatalf("%s is no image that this package writes", name)
		}
		file := must(os.Open(path))(t)
		image, err := crit.New(file, nil, "", false, false).Decode(message)
		file.Close()
		if err != nil {
			t.Fatalf("crit on %s: %v", name, err)
		}
		decoded[name] = image
	}
	if len(decoded) == 0 {
		t.Fatal("no images")
	}
	return decoded
}

// queuesOf are a stream's queues, as crit decodes them.
func queuesOf(t *testing.T, image *crit.CriuImage) (recv, send []byte) {
	t.Helper()
	var queues struct {
		InQ  string `json:"in_q"`
		OutQ string `json:"out_q"`
	}
	if err := json.Unmarshal([]byte(image.Entries[0].Extra), &queues); err != nil {
		t.Fatal(err)
	}
	return must(base64.StdEncoding.DecodeString(queues.InQ))(t), must(base64.StdEncoding.DecodeString(queues.OutQ))(t)
}
