// Package wire watches one TCP connection where its peer's packets come in and
// go out, and says whether the peer could have noticed that the other end was
// moved: by a RST, by a window taken back, by a clock or an acknowledgement that
// went back, by bytes that never came.
//
// [Watch] captures the headers of the connection's packets on a device, a
// [Checker] judges them, and [Observe] is both:
//
//	o, err := wire.Observe("net0", wire.Flow{A: client, B: server})
//	… the connection works, and is moved …
//	report, err := o.Stop()
//	if err := report.Err(); err != nil { … }
//
// The Checker knows nothing of captures: any source of [Segment]s will do.
package wire
