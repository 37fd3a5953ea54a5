package criuimg

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gosoccr/gosoccr/soccr"
)

// A Loss is something that one side has and the other has no place for. It is
// found by comparing what was there with what comes back, so none goes unsaid.
type Loss struct {
	// Field is a snapshot's field, "Options.Congestion", or one of its options,
	// "Options.Settings[TCP_USER_TIMEOUT]", or a field of CRIU's entries,
	// "tcp_stream.opt_mask".
	Field string
	// Value is what was there, and Instead what takes its place: nil where nothing
	// was or is.
	Value, Instead any
}

// String describes the loss. Of bytes, which may be a key, it says how many there are.
func (l Loss) String() string {
	return fmt.Sprintf("%s: %v becomes %v", l.Field, shown(l.Value), shown(l.Instead))
}

func shown(v any) any {
	if b, ok := v.([]byte); ok {
		return fmt.Sprintf("%d bytes", len(b))
	}
	return v
}

// lostFromSnapshot compares a snapshot with what is read back.
func lostFromSnapshot[S soccr.Snapshot | soccr.ListenerSnapshot](before, after *S) []Loss {
	return differences(nil, "", reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem())
}

func differences(losses []Loss, path string, before, after reflect.Value) []Loss {
	for i := range before.NumField() {
		was, is := before.Field(i), after.Field(i)
		field := path + before.Type().Field(i).Name
		switch then := was.Interface().(type) {
		case []soccr.Setting:
			losses = lostSettings(losses, field, then, is.Interface().([]soccr.Setting))
			continue
		case netip.AddrPort: // compared as a whole
		default:
			if was.Kind() == reflect.Struct {
				losses = differences(losses, field+".", was, is)
				continue
			}
		}
		empty := was.Kind() == reflect.Slice && was.Len() == 0 && is.Len() == 0
		if !empty && !reflect.DeepEqual(was.Interface(), is.Interface()) {
			losses = append(losses, Loss{field, was.Interface(), is.Interface()})
		}
	}
	return losses
}

// lostSettings compares by name; what is not there is nil.
func lostSettings(losses []Loss, field string, before, after []soccr.Setting) []Loss {
	for _, s := range before {
		l := Loss{Field: field + "[" + s.Name + "]", Value: settingValue(s)}
		if i, there := findSetting(after, s.Name); there {
			if reflect.DeepEqual(s, after[i]) {
				continue
			}
			l.Instead = settingValue(after[i])
		}
		losses = append(losses, l)
	}
	for _, s := range after {
		if _, there := findSetting(before, s.Name); !there {
			losses = append(losses, Loss{field + "[" + s.Name + "]", nil, settingValue(s)})
		}
	}
	return losses
}

// settingValue is a setting's number, text or bytes.
func settingValue(s soccr.Setting) any {
	switch {
	case s.Text != "":
		return s.Text
	case len(s.Bytes) > 0:
		return s.Bytes
	default:
		return s.Number
	}
}

// kept are the fields that a Socket keeps beside a snapshot: what it is called,
// the namespace it is in and who gets its signals.
var kept = map[string]bool{
	"inet_sk.id": true, "inet_sk.ino": true, "inet_sk.ns_id": true, "inet_sk.fown": true,
}

// lostFromImage compares entries with those that are made of their snapshot.
func lostFromImage(before, after *Socket) []Loss {
	before = before.modern()
	losses := lostFields(nil, before.Inet, after.Inet)
	if before.Stream != nil {
		losses = lostFields(losses, before.Stream.Entry, after.Stream.Entry)
	}
	return losses
}

func lostFields(losses []Loss, before, after proto.Message) []Loss {
	was, is := before.ProtoReflect(), after.ProtoReflect()
	message := strings.TrimSuffix(string(was.Descriptor().Name()), "_entry")
	fields := was.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		v, now := was.Get(field), is.Get(field)
		switch name := message + "." + string(field.Name()); {
		case kept[name] || !was.Has(field):
		case field.IsList():
			if !v.Equal(now) {
				losses = append(losses, Loss{name, list(v.List()), list(now.List())})
			}
		case field.Message() != nil:
			losses = lostFields(losses, v.Message().Interface(), now.Message().Interface())
		case !v.Equal(now):
			losses = append(losses, Loss{name, v.Interface(), now.Interface()})
		}
	}
	if unknown := was.GetUnknown(); len(unknown) > 0 {
		losses = append(losses, Loss{message + ": fields of a newer CRIU", []byte(unknown), nil})
	}
	return losses
}

func list(l protoreflect.List) []any {
	values := make([]any, l.Len())
	for i := range values {
		values[i] = l.Get(i).Interface()
	}
	return values
}
