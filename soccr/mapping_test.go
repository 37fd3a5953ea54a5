package soccr

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMappingOfAddresses(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	m := &Mapping{
		Local: []AddrRule{
			{From: prefix("10.1.2.3/32"), To: prefix("10.9.9.9/32"), FromPort: 80, ToPort: 8080},
			{From: prefix("10.1.0.0/16"), To: prefix("172.16.0.0/16")},
			{From: prefix("192.0.2.128/25"), To: prefix("198.51.100.0/25")},
			{From: prefix("2001:db8:2::/47"), To: prefix("2001:db8:f2::/47")},
			MapAddr(addr("fe80::1"), addr("fe80::2")),
			{FromPort: 1000, ToPort: 2000},
		},
		Devices: map[string]string{"eth0": "net7", "eth1": "eth0"},
	}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{
		"10.1.2.3:80":              "10.9.9.9:8080",
		"10.1.2.3:81":              "172.16.2.3:81",
		"[::ffff:10.1.2.3]:81":     "[::ffff:172.16.2.3]:81",
		"10.2.2.3:80":              "10.2.2.3:80",
		"192.0.2.200:5":            "198.51.100.72:5",
		"192.0.2.100:5":            "192.0.2.100:5",
		"[2001:db8:3:2::3]:9":      "[2001:db8:f3:2::3]:9",
		"[fe80::1%eth0]:9":         "[fe80::2%net7]:9",
		"[fe80::3%eth1]:9":         "[fe80::3%eth0]:9",
		"[fe80::3%eth2]:9":         "[fe80::3%eth2]:9",
		"203.0.113.1:1000":         "203.0.113.1:2000",
		"0.0.0.0:1000":             "0.0.0.0:2000",
		"[2001:db8:3:2::3]:1000":   "[2001:db8:f3:2::3]:1000", // the first that matches
		"[::ffff:10.1.255.1]:1000": "[::ffff:172.16.255.1]:1000",
	} {
		if got := m.end(m.Local, netip.MustParseAddrPort(from)); got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: got %v, want %s", from, got, want)
		}
	}
	if got := m.end(m.Local, netip.AddrPort{}); got.IsValid() {
		t.Errorf("no address became %v", got)
	}
	m.Remote = []AddrRule{{FromPort: 1000, ToPort: 3000}}
	local, remote := netip.MustParseAddrPort("203.0.113.1:1000"), netip.MustParseAddrPort("203.0.113.2:1000")
	if l, r := m.Ends(local, remote); l.Port() != 2000 || r.Port() != 3000 || l.Addr() != local.Addr() || r.Addr() != remote.Addr() {
		t.Errorf("the ends became %v and %v", l, r)
	}
}

func TestMappingIsInvalid(t *testing.T) {
	prefix := netip.MustParsePrefix
	for what, m := range map[string]*Mapping{
		"other lengths":     {Local: []AddrRule{{From: prefix("10.0.0.0/8"), To: prefix("10.0.0.0/16")}}},
		"other families":    {Remote: []AddrRule{{From: prefix("10.0.0.0/32"), To: prefix("2001:db8::/32")}}},
		"host bits":         {Local: []AddrRule{{From: netip.PrefixFrom(netip.MustParseAddr("10.1.1.1"), 8), To: prefix("11.0.0.0/8")}}},
		"mapped":            {Local: []AddrRule{{From: prefix("::ffff:10.0.0.1/128"), To: prefix("::ffff:10.0.0.2/128")}}},
		"nothing to map to": {Local: []AddrRule{{From: prefix("10.0.0.0/8")}}},
		"from nothing":      {Local: []AddrRule{{To: prefix("10.0.0.0/8")}}},
		"no device":         {Devices: map[string]string{"eth0": ""}},
		"a path":            {Devices: map[string]string{"eth0": "a/b"}},
	} {
		_, applied := m.Apply(new(everyField()))
		_, toListener := m.ApplyListener(new(everyListenerField()))
		for how, err := range map[string]error{"Validate": m.Validate(), "Apply": applied, "ApplyListener": toListener} {
			if !errors.Is(err, ErrInvalidMapping) {
				t.Errorf("%s: %s: %v", what, how, err)
			}
		}
	}
}

// A mapping changes ends, devices and the peers of keys, and nothing else; not what
// it was given, either.
func TestMappingApplies(t *testing.T) {
	prefix := netip.MustParsePrefix
	m := &Mapping{
		Local:   []AddrRule{{From: prefix("2001:db8::1/128"), To: prefix("2001:db8::a/128"), FromPort: 443, ToPort: 8443}, {FromPort: 443, ToPort: 8443}},
		Remote:  []AddrRule{{From: prefix("2001:db8::2/128"), To: prefix("2001:db8::b/128")}, {From: prefix("192.0.2.0/24"), To: prefix("203.0.113.0/24")}},
		Devices: map[string]string{"eth0": "eth1"},
	}
	s, before := everyField(), everyField()
	s.MD5Keys = []MD5Key{
		{Peers: prefix("2001:db8::2/128"), Key: []byte("one")},
		{Peers: prefix("192.0.2.7/32"), Key: []byte("within")},
		{Peers: prefix("198.51.100.0/24"), Key: []byte("apart")},
	}
	before.MD5Keys = append([]MD5Key{}, s.MD5Keys...)
	got, err := m.Apply(&s)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})}
	if d := cmp.Diff(before, s, same); d != "" {
		t.Errorf("the snapshot was changed:\n%s", d)
	}
	want := before
	want.Local, want.Remote = netip.MustParseAddrPort("[2001:db8::a]:8443"), netip.MustParseAddrPort("[2001:db8::b]:50000")
	want.MD5Keys = []MD5Key{
		{Peers: prefix("2001:db8::b/128"), Key: []byte("one")},
		{Peers: prefix("203.0.113.7/32"), Key: []byte("within")},
		{Peers: prefix("198.51.100.0/24"), Key: []byte("apart")},
	}
	want.Options.Settings = append([]Setting{}, before.Options.Settings...)
	for i := range want.Options.Settings {
		if want.Options.Settings[i].Name == "SO_BINDTODEVICE" {
			want.Options.Settings[i].Text = "eth1"
		}
	}
	if d := cmp.Diff(&want, got, same); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	l, untouched := everyListenerField(), everyListenerField()
	l.MD5Keys, untouched.MD5Keys = nil, nil
	l.Pending[1].MD5Keys, untouched.Pending[1].MD5Keys = nil, nil
	gotListener, err := m.ApplyListener(&l)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(untouched, l, same); d != "" {
		t.Errorf("the listener was changed:\n%s", d)
	}
	if gotListener.Local.Port() != 8443 || gotListener.Pending[0].Local.Port() != 8443 ||
		gotListener.Pending[1].Local != want.Local || gotListener.Pending[1].Remote != want.Remote {
		t.Errorf("got a listener at %v with %v and %v", gotListener.Local, gotListener.Pending[0].Local, gotListener.Pending[1].Local)
	}
}

// A datagram socket's groups and what it has not read are mapped with it.
func TestMappingOfDatagrams(t *testing.T) {
	prefix, addr, end := netip.MustParsePrefix, netip.MustParseAddr, netip.MustParseAddrPort
	m := &Mapping{
		Local:   []AddrRule{{From: prefix("10.1.0.0/16"), To: prefix("10.2.0.0/16"), FromPort: 53, ToPort: 5353}},
		Remote:  []AddrRule{{From: prefix("192.0.2.0/24"), To: prefix("203.0.113.0/24")}},
		Devices: map[string]string{"eth0": "eth1"},
	}
	of := func(local, remote, source, multicast, device string) *DatagramSnapshot {
		return &DatagramSnapshot{
			Local: end(local), Remote: end(remote),
			Options: Options{Settings: []Setting{{Name: "IP_MULTICAST_IF", Text: multicast}, {Name: "SO_BINDTODEVICE", Text: device}}},
			Groups:  []Group{{Addr: addr("239.1.1.1"), Device: device, Only: true, Sources: []netip.Addr{addr(source)}}},
			RecvQueue: []Datagram{
				{From: end(remote), To: end(local).Addr(), Data: []byte("unread")},
			},
		}
	}
	d, untouched := of("10.1.0.7:53", "192.0.2.3:1", "192.0.2.4", "10.9.0.1", "eth0"), of("10.1.0.7:53", "192.0.2.3:1", "192.0.2.4", "10.9.0.1", "eth0")
	got, err := m.ApplyDatagram(d)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})}
	if diff := cmp.Diff(of("10.2.0.7:5353", "203.0.113.3:1", "203.0.113.4", "10.9.0.1", "eth1"), got, same); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(untouched, d, same); diff != "" {
		t.Errorf("the snapshot was changed:\n%s", diff)
	}
	m.Local[0].To = prefix("10.2.0.0/17")
	if _, err := m.ApplyDatagram(d); !errors.Is(err, ErrInvalidMapping) {
		t.Errorf("an invalid mapping: %v", err)
	}
}

// What a mapping makes must be possible.
func TestMappingIntoNonsense(t *testing.T) {
	prefix := netip.MustParsePrefix
	s := everyField()
	for what, c := range map[string]struct {
		m    Mapping
		want error
	}{
		"multicast":     {Mapping{Local: []AddrRule{{From: prefix("2001:db8::/32"), To: prefix("ff02::/32")}}}, ErrInvalidSnapshot},
		"half of a key": {Mapping{Remote: []AddrRule{{From: prefix("2001:db8::2/128"), To: prefix("2001:db8::3/128")}}}, ErrInvalidMapping},
	} {
		s.MD5Keys = []MD5Key{{Peers: prefix("2001:db8::/64"), Key: []byte("for all")}}
		if _, err := c.m.Apply(&s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	l := everyListenerField()
	m := &Mapping{Local: []AddrRule{{From: prefix("2001:db8::/32"), To: prefix("2001:db8::/32"), ToPort: 1}}}
	if _, err := m.ApplyListener(&l); !errors.Is(err, ErrInvalidSnapshot) {
		t.Errorf("a pending connection at another port than its listener: %v", err)
	}
}

func TestMappingIsJSON(t *testing.T) {
	const text = `{"Local":[{"From":"10.1.0.0/16","To":"10.2.0.0/16","FromPort":80,"ToPort":8080}],"Devices":{"eth0":"eth1"}}`
	var m Mapping
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(&m)
	if err != nil || string(b) != text {
		t.Errorf("%s, %v", b, err)
	}
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	var none Mapping
	s := everyField()
	if got, err := none.Apply(&s); err != nil || !reflect.DeepEqual(*got, s) {
		t.Errorf("an empty mapping: %v", err)
	}
}
