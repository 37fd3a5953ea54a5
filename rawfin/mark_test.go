package rawfin_test

import (
	_ "embed"
	"regexp"
	"strconv"
	"testing"

	"github.com/gosoccr/gosoccr/rawfin"
)

//go:embed mark.go
var markSource string

// The table in the documentation is what the choice was made from, so it is
// the documentation that is tested.
func TestDefaultMarkSharesNoBit(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^//\t(\S.*?)\s+0x([0-9a-f]{8})  https://\S+`).FindAllStringSubmatch(markSource, -1)
	if len(rows) < 16 {
		t.Fatalf("found %d rows in the table of marks", len(rows))
	}
	var taken uint32
	for _, row := range rows {
		bits, err := strconv.ParseUint(row[2], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		taken |= uint32(bits)
		if shared := uint32(bits) & rawfin.DefaultMark; shared != 0 {
			t.Errorf("DefaultMark %#x shares %#x with %s", rawfin.DefaultMark, shared, row[1])
		}
	}
	if ^taken != rawfin.DefaultMark {
		t.Errorf("the table leaves %#x, which is not DefaultMark", ^taken)
	}
}
