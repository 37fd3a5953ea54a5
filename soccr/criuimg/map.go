package criuimg

import (
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"google.golang.org/protobuf/proto"

	"github.com/gosoccr/gosoccr/soccr"
)

// Map gives the image's sockets the addresses, ports and devices that they have
// where they are restored, and tells how many it changed: TCP sockets in every
// state, and those of UDP and of other protocols over IP too, as CRIU restores them
// from the same entries. What the mapping does not name stays as it is, to the byte.
//
// It fails with soccr.ErrInvalidMapping, or where a TCP socket that could be
// restored could not be any more; the image is unchanged then. What a mapping
// cannot do is told at soccr.Mapping. The addresses of network devices are in other
// images, and not changed: CRIU restores those of a container that has a network
// namespace of its own.
func (im *Image) Map(m *soccr.Mapping) (changed int, err error) {
	if err := m.Validate(); err != nil {
		return 0, err
	}
	mapped := make([]*Socket, len(im.Sockets))
	for i, s := range im.Sockets {
		mapped[i] = s.clone()
		differs, err := mapped[i].mapEnds(m)
		if err != nil {
			return 0, fmt.Errorf("socket %d: %w", s.Inet.GetId(), err)
		}
		if !differs {
			mapped[i] = nil
			continue
		}
		if err := mapped[i].check(); err != nil && s.check() == nil {
			return 0, fmt.Errorf("socket %d: %w", s.Inet.GetId(), err)
		}
		changed++
	}
	files, n, err := im.mapRecords(im.files, m, func(raw []byte) (proto.Message, *inetsk.InetSkEntry, error) {
		if kind, ok := number(raw, fileType); !ok || fdinfo.FdTypes(kind) != fdinfo.FdTypes_INETSK {
			return nil, nil, nil
		}
		file := &fdinfo.FileEntry{}
		err := unmarshal(raw, file)
		return file, file.Isk, err
	})
	if err != nil {
		return 0, err
	}
	changed += n
	inetsks, n, err := im.mapRecords(im.inetsks, m, func(raw []byte) (proto.Message, *inetsk.InetSkEntry, error) {
		inet := &inetsk.InetSkEntry{}
		err := unmarshal(raw, inet)
		return inet, inet, err
	})
	if err != nil {
		return 0, err
	}
	for i, s := range mapped {
		if s != nil {
			*im.Sockets[i] = *s
		}
	}
	im.files, im.inetsks = files, inetsks
	return changed + n, nil
}

// check reports what keeps a TCP socket from being restored.
func (s *Socket) check() (err error) {
	if s.State() == soccr.StateListen {
		_, _, err = s.Listener()
	} else {
		_, _, err = s.Snapshot()
	}
	return err
}

// mapRecords maps the entries of other protocols than TCP. entry decodes one, and
// gives nil for what has no addresses.
func (im *Image) mapRecords(records []record, m *soccr.Mapping, entry func([]byte) (proto.Message, *inetsk.InetSkEntry, error)) (mapped []record, changed int, err error) {
	mapped = slices.Clone(records)
	for i := range mapped {
		r := &mapped[i]
		if r.socket != nil {
			continue
		}
		message, inet, err := entry(r.raw)
		if err != nil {
			return nil, 0, err
		}
		if inet == nil {
			continue
		}
		switch differs, err := (&Socket{Inet: inet, BigEndian: im.bigEndian}).mapEnds(m); {
		case err != nil:
			return nil, 0, fmt.Errorf("socket %d: %w", inet.GetId(), err)
		case !differs:
			continue
		}
		changed++
		if r.raw, err = (proto.MarshalOptions{Deterministic: true}).Marshal(message); err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrInvalidImage, err)
		}
	}
	return mapped, changed, nil
}

// mapEnds maps what an entry says of addresses, ports and devices, and reports
// whether that changes it.
func (s *Socket) mapEnds(m *soccr.Mapping) (differs bool, err error) {
	local, err := s.Local()
	if err != nil {
		return false, err
	}
	remote, err := s.Remote()
	if err != nil {
		return false, err
	}
	e := s.Inet
	newLocal, newRemote := m.Ends(local, remote)
	if local != newLocal {
		e.SrcAddr, e.SrcPort, differs = s.words(newLocal.Addr()), new(uint32(newLocal.Port())), true
	}
	if remote != newRemote {
		e.DstAddr, e.DstPort, differs = s.words(newRemote.Addr()), new(uint32(newRemote.Port())), true
	}
	devices := []**string{&e.Ifname}
	if e.Opts != nil {
		devices = append(devices, &e.Opts.SoBoundDev)
	}
	for _, device := range devices {
		if *device == nil {
			continue
		}
		if to, ok := m.Devices[**device]; ok {
			*device, differs = &to, true
		}
	}
	return differs, nil
}
