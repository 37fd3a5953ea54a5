package soccr

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
)

// travelling is what snapshots of every kind can do: the tests here are for those of
// listeners and of datagram sockets.
type travelling[T any] interface {
	*T
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
	io.WriterTo
	io.ReaderFrom
	Validate() error
}

// testGoldens compares encodings with those kept in testdata, and reads both them
// and JSON back.
func testGoldens[T any, P travelling[T]](t *testing.T, dir string, goldens map[string]T, diff func(want, got P) string) {
	for name, golden := range goldens {
		t.Run(name, func(t *testing.T) {
			want := P(&golden)
			if err := want.Validate(); err != nil {
				t.Fatalf("the golden snapshot is not valid: %v", err)
			}
			encoded, err := want.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", dir, name+".bin")
			if *update {
				if err := os.WriteFile(path, encoded, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(encoded, kept) {
				t.Errorf("encoded to\n%q, want\n%q", encoded, kept)
			}
			got := P(new(T))
			if err := got.UnmarshalBinary(kept); err != nil {
				t.Fatal(err)
			}
			if d := diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			var written bytes.Buffer
			if n, err := want.WriteTo(&written); err != nil || n != int64(len(kept)) || !bytes.Equal(written.Bytes(), kept) {
				t.Errorf("WriteTo wrote %d bytes: %v", n, err)
			}
			text, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			got = P(new(T))
			if err := json.Unmarshal(text, got); err != nil {
				t.Fatal(err)
			}
			if d := diff(want, got); d != "" {
				t.Errorf("JSON (-want +got):\n%s", d)
			}
		})
	}
}

// testEveryField encodes each field by itself: one that is forgotten in the
// encoding's table fails here.
func testEveryField[T any, P travelling[T]](t *testing.T, every T, diff func(want, got P) string) {
	all := reflect.ValueOf(every)
	for i := range all.NumField() {
		name := all.Type().Field(i).Name
		if all.Field(i).IsZero() {
			t.Fatalf("%s is zero: it would not be tested", name)
		}
		want, got := P(new(T)), P(new(T))
		reflect.ValueOf(want).Elem().Field(i).Set(all.Field(i))
		b, err := want.MarshalBinary()
		if err == nil {
			err = got.UnmarshalBinary(b)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// testTagsRise: the rising order of tags is what makes an encoding the only one.
func testTagsRise[T any](t *testing.T, fields []codec[T]) {
	for i := range fields[1:] {
		if fields[i].tag >= fields[i+1].tag {
			t.Errorf("tag %d is followed by tag %d", fields[i].tag, fields[i+1].tag)
		}
	}
}

// testFollowEachOther writes snapshots one behind the other and reads them back.
func testFollowEachOther[T any, P travelling[T]](t *testing.T, every P, diff func(want, got P) string) {
	var stream bytes.Buffer
	for range 2 {
		if _, err := every.WriteTo(&stream); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		got := P(new(T))
		if _, err := got.ReadFrom(&stream); err != nil {
			t.Fatal(err)
		}
		if d := diff(every, got); d != "" {
			t.Error(d)
		}
	}
	if _, err := P(new(T)).ReadFrom(&stream); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// A breach is a way to make a valid snapshot break the rule for one field.
type breach[T any] struct {
	field string
	how   func(*T)
}

// fieldsWithRules are the fields that the Validate of a type calls invalid, as the
// source says: its own, in a file, and that for the options of all.
func fieldsWithRules[T any](t *testing.T, file string) []string {
	t.Helper()
	return append(calledInvalid[T](t, file, "Validate"), calledInvalid[Options](t, "validate.go", "validate")...)
}

func calledInvalid[T any](t *testing.T, file, method string) (fields []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	of := reflect.TypeFor[T]().Name()
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != method || f.Recv.List[0].Type.(*ast.StarExpr).X.(*ast.Ident).Name != of {
			continue
		}
		for n := range ast.Preorder(f) {
			if call, ok := n.(*ast.CallExpr); ok {
				if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "invalid" {
					field, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					fields = append(fields, field)
				}
			}
		}
	}
	if len(fields) == 0 {
		t.Fatalf("no rules of %s in %s", of, file)
	}
	return fields
}

// testValidate checks that each breach is found, and that there is one for each rule
// in a file.
func testValidate[T any, P travelling[T]](t *testing.T, every func() T, breaches []breach[T], file string) {
	broken := map[string]bool{}
	for _, b := range breaches {
		snap := every()
		b.how(&snap)
		err := P(&snap).Validate()
		wrong, ok := errors.AsType[*FieldError](err)
		if !ok || wrong.Field != b.field || !errors.Is(wrong, ErrInvalidSnapshot) {
			t.Errorf("%s: Validate: %v", b.field, err)
		}
		broken[b.field] = true
	}
	for _, field := range fieldsWithRules[T](t, file) {
		if !broken[field] {
			t.Errorf("no breach of the rule for %s", field)
		}
	}
}
