package netlock

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the name of every lock's table, so that New finds those
// that a killed owner left behind.
const tablePrefix = "gosoccr-"

// ownerFlag is NFT_TABLE_F_OWNER: only the socket that made the table can change
// it, which spares it "nft flush ruleset", and it goes when that socket closes.
const ownerFlag = 2

// A table is the lock in the kernel. It holds groups of flows, each of them
//
//	set flows4_0 { type ipv4_addr . inet_service . ipv4_addr . inet_service }
//	set flows6_0 { type ipv6_addr . inet_service . ipv6_addr . inet_service }
//	set lease_0 { type nf_proto; flags timeout; timeout 30s; elements = { ipv4, ipv6 } }
//
// and rules by which the packets of these flows, while the lease has elements, go
// to a chain that drops what was not injected.
// So there is one short set to renew, however many flows there are; and flows
// that do not fit into one transaction are put into a group without a lease,
// and are locked all together by the transaction that gives it one.
type table struct {
	conn     *netlink.Conn
	raw      syscall.RawConn // of conn
	batch    []byte          // memory of transactions
	name     string
	config   config
	capacity int // flows that fit into one transaction
}

// A group has a number; group 0 is made with the table.
type group int

func (g group) flows4() string { return "flows4_" + strconv.Itoa(int(g)) }
func (g group) flows6() string { return "flows6_" + strconv.Itoa(int(g)) }
func (g group) lease() string  { return "lease_" + strconv.Itoa(int(g)) }

// set describes an nftables set.
type set struct {
	name    string
	keyType nftables.SetDatatype
	timeout time.Duration // of its elements, if not 0
}

func flowType(addr nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService)
}

// appendKey appends the flow as an element of its set: each part padded to 4 bytes.
func (f Flow) appendKey(b []byte) []byte {
	for _, end := range [...]netip.AddrPort{f.Local, f.Remote} {
		if addr := end.Addr(); addr.Is4() {
			a := addr.As4()
			b = append(b, a[:]...)
		} else {
			a := addr.As16()
			b = append(b, a[:]...)
		}
		b = append(binary.BigEndian.AppendUint16(b, end.Port()), 0, 0)
	}
	return b
}

const (
	// keySize is that of the largest key, an IPv6 flow's.
	keySize = 2 * (16 + 4)
	// elementSize is that of an element with this key and its three headers.
	elementSize = 3*unix.SizeofNlAttr + keySize
	// elementsPerMessage keeps the list of elements, one attribute, below the
	// 64 KiB that its length can express.
	elementsPerMessage = 1000
	// overhead is more than all else in a transaction with flows takes.
	overhead = 16 << 10
	// keptBatch is up to what size a batch's memory is kept for the next one.
	keptBatch = 64 << 10
	// sendBuffer is enough for the messages of 300,000 flows.
	sendBuffer = 16 << 20
)

// makeTable puts a table into the kernel and what fill adds into the table.
func makeTable(c config, fill func(*table, *transaction) error) (*table, error) {
	t := &table{name: uniqueName(), config: c}
	err := c.withNetNS(func(ns int) (err error) {
		removeAbandoned(ns)
		t.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
		return because(err)
	})
	if err != nil {
		return nil, err
	}
	if t.raw, err = t.conn.SyscallConn(); err != nil {
		return nil, errors.Join(err, t.conn.Close())
	}
	if err := t.create(fill); err != nil {
		return nil, errors.Join(err, t.conn.Close())
	}
	return t, nil
}

// withNetNS gives f the file descriptor of the namespace, or 0 for the caller's.
func (c config) withNetNS(f func(ns int) error) error {
	switch {
	case c.netNS != nil:
		if *c.netNS <= 0 {
			return fmt.Errorf("network namespace: %w: %d", unix.EBADF, *c.netNS)
		}
		return f(*c.netNS)
	case c.netNSPath != "":
		file, err := os.Open(c.netNSPath)
		if err != nil {
			return err
		}
		defer file.Close()
		return f(int(file.Fd()))
	}
	return f(0)
}

// uniqueName gives a name with 80 random bits that fits the 31 bytes of kernels
// before 4.14.
func uniqueName() string { return tablePrefix + rand.Text()[:16] }

func (t *table) create(fill func(*table, *transaction) error) error {
	// A batch is one message of the socket and has to fit into its buffer
	// (netlink_sendmsg: EMSGSIZE). SetWriteBuffer goes beyond net.core.wmem_max
	// where the caller may, which takes CAP_NET_ADMIN in the first user
	// namespace, and else up to it.
	if err := t.conn.SetWriteBuffer(sendBuffer); err != nil {
		return err
	}
	if err := t.measure(); err != nil {
		return err
	}
	flags := []uint32{ownerFlag, 0}
	if t.config.unowned {
		flags = flags[1:]
	}
	for i, f := range flags {
		tx := t.begin()
		tx.newTable(f)
		if err := fill(t, tx); err != nil {
			return err
		}
		err := tx.commit(t.raw)
		// Kernels before 5.12 do not know the owner flag.
		old := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
		if !old || i == len(flags)-1 {
			return because(err)
		}
	}
	return nil
}

// measure finds out how many flows fit into one transaction.
func (t *table) measure() error {
	size, err := t.conn.WriteBuffer()
	t.capacity = max(1, (size-overhead)/elementSize)
	return err
}

// fillFlows makes a table whose first group is ready for flows.
func (t *table) fillFlows(tx *transaction) error {
	if err := t.addChains(tx); err != nil {
		return err
	}
	if err := t.addGroup(tx, 0); err != nil {
		return err
	}
	if err := t.addListeners(tx); err != nil {
		return err
	}
	tx.lease(unix.NFT_MSG_NEWSETELEM, 0)
	return nil
}

// fillNamespace makes a table that drops everything.
func (t *table) fillNamespace(tx *transaction) error {
	if err := t.addChains(tx); err != nil {
		return err
	}
	t.addLease(tx, 0)
	if err := t.addRules(tx, 0, namespaceRules); err != nil {
		return err
	}
	tx.lease(unix.NFT_MSG_NEWSETELEM, 0)
	return nil
}

func (t *table) addChains(tx *transaction) error {
	tx.newSet(set{name: untrackedName, keyType: nftables.TypeNFProto})
	tx.bothFamilies(unix.NFT_MSG_NEWSETELEM, untrackedName)
	for _, c := range t.chains() {
		tx.newChain(c.locked())
		if err := tx.newRules(c.locked(), lockedRules(t.config.mark, c)); err != nil {
			return err
		}
		tx.newBaseChain(c)
	}
	return nil
}

func (t *table) chains() []chain {
	if t.config.forward {
		return append(slices.Clone(chains), forwardChain)
	}
	return chains
}

// addGroup adds an empty group's sets, without a lease, and its rules.
func (t *table) addGroup(tx *transaction, g group) error {
	tx.newSet(set{name: g.flows4(), keyType: flowType(nftables.TypeIPAddr)})
	tx.newSet(set{name: g.flows6(), keyType: flowType(nftables.TypeIP6Addr)})
	t.addLease(tx, g)
	return t.addRules(tx, g, flowRules)
}

func (t *table) addLease(tx *transaction, g group) {
	tx.newSet(set{name: g.lease(), keyType: nftables.TypeNFProto, timeout: t.config.timeout})
}

func (t *table) addRules(tx *transaction, g group, rules func(group, chain) [][]expr.Any) error {
	for _, c := range t.chains() {
		if err := tx.newRules(c.name, rules(g, c)); err != nil {
			return err
		}
	}
	return nil
}

// lease gives a group its lease (NFT_MSG_NEWSETELEM) or ends it
// (NFT_MSG_DELSETELEM), which fails with ENOENT if it has expired.
func (tx *transaction) lease(kind int, g group) { tx.bothFamilies(kind, g.lease()) }

func (tx *transaction) bothFamilies(kind int, set string) {
	tx.elements(kind, set, func() {
		tx.element([]byte{unix.NFPROTO_IPV4})
		tx.element([]byte{unix.NFPROTO_IPV6})
	})
}

// newGroup adds a group that has no lease.
func (t *table) newGroup(g group) error {
	tx := t.begin()
	if err := t.addGroup(tx, g); err != nil {
		return err
	}
	return t.commit(tx)
}

// empty takes all flows out of a group.
func (t *table) empty(g group) error {
	tx := t.begin()
	for _, name := range []string{g.flows4(), g.flows6()} {
		tx.flush(name)
	}
	return t.commit(tx)
}

// renew starts the time of leases anew. Their elements are deleted and added,
// which every kernel can, rather than updated, which takes 6.12.
func (t *table) renew(groups []group) error {
	tx := t.begin()
	for _, g := range groups {
		tx.lease(unix.NFT_MSG_DELSETELEM, g)
		tx.lease(unix.NFT_MSG_NEWSETELEM, g)
	}
	return t.commit(tx)
}

// change puts flows into their groups and gives some groups their lease
// (NFT_MSG_NEWSETELEM), or takes flows out and ends leases (NFT_MSG_DELSETELEM), in
// one transaction of at most t.capacity flows.
func (t *table) change(kind int, flows []placed, leases []group) error {
	tx := t.begin()
	for _, g := range leases {
		tx.lease(kind, g)
	}
	var sets []flowSet // a group has two, and there are few groups
	for i := range flows {
		if s := flows[i].set(); !slices.Contains(sets, s) {
			sets = append(sets, s)
			tx.change(kind, s, flows[i:])
		}
	}
	return t.commit(tx)
}

// change changes the flows of one set.
func (tx *transaction) change(kind int, s flowSet, flows []placed) {
	name := s.in.flows6()
	if s.is4 {
		name = s.in.flows4()
	}
	others := func() {
		for len(flows) > 0 && flows[0].set() != s {
			flows = flows[1:]
		}
	}
	for len(flows) > 0 {
		tx.elements(kind, name, func() {
			var room [keySize]byte
			for n := 0; len(flows) > 0 && n < elementsPerMessage; n++ {
				tx.element(flows[0].appendKey(room[:0]))
				flows = flows[1:]
				others()
			}
		})
	}
}

// A flowSet holds the flows of a group that speak one version of IP.
type flowSet struct {
	in  group
	is4 bool
}

func (f *placed) set() flowSet { return flowSet{f.in, f.Local.Addr().Is4()} }

// begin makes a transaction on the table.
func (t *table) begin() *transaction { return begin(t.name, t.batch) }

// commit carries out a transaction on a table that is there. If it is not, or
// if a lease has expired, the kernel answers ENOENT.
func (t *table) commit(tx *transaction) error {
	err := tx.commit(t.raw)
	if t.batch = tx.batch; cap(t.batch) > keptBatch {
		t.batch = nil
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return because(err)
}

// close removes the table. An owned one goes with its socket in any case.
func (t *table) close() error {
	tx := t.begin()
	tx.delTable()
	return errors.Join(t.commit(tx), t.conn.Close())
}

// because gives the reason for what the kernel answered, where there is one.
func because(err error) error {
	for errno, reason := range reasons {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", reason, err)
		}
	}
	return err
}

var reasons = map[unix.Errno]error{
	unix.EPERM:           ErrNoPermission,
	unix.EACCES:          ErrNoPermission,
	unix.EPROTONOSUPPORT: ErrNoNFTables, // socket(2): no nfnetlink
	unix.EOPNOTSUPP:      ErrNoNFTables, // nfnetlink_rcv_batch: no nf_tables
	unix.EAFNOSUPPORT:    ErrNoNFTables, // nf_tables_newtable: no inet family
	unix.ENOENT:          ErrNoNFTables, // nft_expr_type_get: no such expression
}
