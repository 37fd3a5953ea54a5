package soccr

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// shows reports whether a text has a part of a secret in it, in any form that bytes
// are printed in.
func shows(text string, secret []byte) bool {
	const part = 6
	for at := 0; at+part <= len(secret); at++ {
		b := secret[at : at+part]
		if bytes.Count(b, b[:1]) == part {
			continue // zeros and the like are found in many numbers
		}
		decimal := strings.Trim(fmt.Sprintf("%d", b), "[]")
		if strings.Contains(text, string(b)) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", b)) ||
			strings.Contains(text, strings.Trim(fmt.Sprintf("%q", b), `"`)) || strings.Contains(text, decimal) {
			return true
		}
	}
	return len(secret) >= part && strings.Contains(text, base64.StdEncoding.EncodeToString(secret[:part]))
}

// Shows is for the tests outside.
var Shows = shows

func TestShows(t *testing.T) {
	secret := []byte("\x00Kj4!xq9;Vz\xff")
	for _, format := range []string{"%s", "%x", "%X", "%q", "%v", "%d"} {
		if text := fmt.Sprintf("before "+format+" after", secret); !shows(text, secret) {
			t.Errorf("not found in %s", text)
		}
	}
	if text := base64.StdEncoding.EncodeToString(secret); !shows(text, secret) {
		t.Errorf("not found in %s", text)
	}
	if shows("before and after: 12 bytes", secret) {
		t.Error("found where it is not")
	}
}

// No error shows what is in the queues, or a key: neither that of a snapshot that is
// damaged, nor that of one in which something is wrong, whatever it is.
func TestErrorsKeepSecrets(t *testing.T) {
	s, l, d := everyField(), everyListenerField(), everyDatagramField()
	secrets := [][]byte{[]byte("Kj4!xq9;Vz<0"), []byte("Wq7)bN3:Lp>1"), []byte("Xh5[Rt8]Zc{2"), []byte("Gy6%Md2^Fs|3"), []byte("Qv1~Bk0@Jw}4")}
	for _, c := range []*Snapshot{&s, l.Pending[0]} {
		c.RecvQueue, c.SendQueue, c.Unsent = secrets[0], secrets[1], 1
		c.MD5Keys = []MD5Key{{everyField().MD5Keys[0].Peers, secrets[2]}}
	}
	l.MD5Keys = []MD5Key{{everyField().MD5Keys[0].Peers, secrets[2]}}
	cookies := bytes.Repeat(secrets[3], 2)[:16]
	l.Options.Settings = []Setting{{Name: "TCP_FASTOPEN_KEY", Bytes: cookies}}
	d.RecvQueue[0].Data = secrets[4]
	checked := map[string]bool{}
	check := func(what string, err error) {
		t.Helper()
		if err == nil || checked[err.Error()] {
			return
		}
		checked[err.Error()] = true
		for _, secret := range secrets {
			if shows(err.Error(), secret) {
				t.Errorf("%s: %q shows %q", what, err, secret)
			}
		}
	}

	for _, v := range []interface {
		Validate() error
		MarshalBinary() ([]byte, error)
		UnmarshalBinary([]byte) error
	}{&s, &l, &d} {
		if err := v.Validate(); err != nil {
			t.Fatal(err)
		}
		encoded, err := v.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		decode := reflect.New(reflect.TypeOf(v).Elem()).Interface().(interface{ UnmarshalBinary([]byte) error })
		for i := range encoded {
			check("cut", decode.UnmarshalBinary(encoded[:i]))
			for bit := range 8 {
				changed := bytes.Clone(encoded)
				changed[i] ^= 1 << bit
				check("damaged", decode.UnmarshalBinary(changed))
				check("damaged, with the right checksum", decode.UnmarshalBinary(sealed(changed)))
			}
		}
		checkFields(v, reflect.ValueOf(v).Elem(), check)
	}
	for _, secret := range secrets[2:4] {
		want := &Setting{Name: "TCP_FASTOPEN_KEY", Bytes: bytes.Repeat(secret, 2)[:16]}
		check("not kept", mismatch("Options.Settings: "+want.Name, want.value(), want.value()))
		check("another key", mismatch("MD5Keys", []MD5Key{{Key: secret}}, MD5Key{Key: secret}))
	}
	if len(checked) < 300 {
		t.Errorf("only %d different errors", len(checked))
	}
}

// checkFields makes every field zero, and the largest that it can be, one by one, at
// any depth, and checks what Validate and MarshalBinary say of that.
func checkFields(v interface {
	Validate() error
	MarshalBinary() ([]byte, error)
}, field reflect.Value, check func(string, error)) {
	try := func(value reflect.Value) {
		before := reflect.New(field.Type()).Elem()
		before.Set(field)
		field.Set(value)
		check("changed "+field.Type().String(), v.Validate())
		_, err := v.MarshalBinary()
		check("changed "+field.Type().String(), err)
		field.Set(before)
	}
	try(reflect.Zero(field.Type()))
	switch field.Kind() {
	case reflect.Struct:
		for i := range field.NumField() {
			if field.Type().Field(i).IsExported() {
				checkFields(v, field.Field(i), check)
			}
		}
	case reflect.Pointer:
		if !field.IsNil() {
			checkFields(v, field.Elem(), check)
		}
	case reflect.Slice:
		for i := range field.Len() {
			if field.Index(i).Kind() != reflect.Uint8 {
				checkFields(v, field.Index(i), check)
			}
		}
		if field.Len() > 0 { // too many
			try(reflect.AppendSlice(field.Slice3(0, field.Len(), field.Len()), repeated(field.Index(0), 300)))
		}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		try(reflect.ValueOf(^uint64(0)).Convert(field.Type()))
	case reflect.Int, reflect.Int64:
		try(reflect.ValueOf(int64(-1)).Convert(field.Type()))
	case reflect.Bool:
		try(reflect.ValueOf(!field.Bool()))
	case reflect.String:
		try(reflect.ValueOf(strings.Repeat("\x00", 300)))
	}
}

func repeated(v reflect.Value, n int) reflect.Value {
	all := reflect.MakeSlice(reflect.SliceOf(v.Type()), n, n)
	for i := range n {
		all.Index(i).Set(v)
	}
	return all
}
