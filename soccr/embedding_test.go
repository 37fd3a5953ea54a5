package soccr_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The guide shows nothing but code that is compiled and run.
func TestEmbeddingGuide(t *testing.T) {
	guide, err := os.ReadFile("../docs/embedding.md")
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("example_embedding_linux_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(guide), -1)
	if len(blocks) != 3 {
		t.Errorf("%d blocks of code", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(string(code), b[1]) {
			t.Errorf("this is not in the example:\n%s", b[1])
		}
	}
}
