package diag

import "time"

// Info is the kernel's struct tcp_info: how a connection fares. Fields that are
// newer than the kernel are zero. Segments are counted in segments, everything
// else in bytes unless it says otherwise.
type Info struct {
	// What the handshake agreed on.
	Timestamps, SACK, WindowScaling, ECN bool
	SendScale, RecvScale                 uint8 // by how many bits the peer's and our windows are shifted

	ECNSeen  bool // a packet with ECT has arrived
	SynData  bool // the SYN's data was acknowledged (TCP Fast Open)
	UsecTS   bool // timestamps count microseconds (Linux 6.7)
	TFOChild bool // accepted by way of TCP Fast Open (Linux 6.14)

	CongestionState uint8 // enum tcp_ca_state: 0 Open, 1 Disorder, 2 CWR, 3 Recovery, 4 Loss
	Retransmits     uint8 // expiries of the retransmission timer in a row
	Probes          uint8 // unanswered window or keepalive probes
	Backoff         uint8 // by how many bits the timer is prolonged

	RTO, ATO                         time.Duration // timeouts of retransmission and of delayed ACKs
	SendMSS, RecvMSS, AdvertisedMSS  uint32
	PMTU                             uint32
	Unacked, Sacked, Lost, Retrans   uint32 // segments in flight, by fate
	LastDataSent, LastDataRecv       time.Duration
	LastAckRecv                      time.Duration
	RTT, RTTVar, MinRTT, RecvRTT     time.Duration
	SendSSThresh, SendCwnd           uint32 // segments
	RecvSSThresh, RecvSpace          uint32
	SendWindow, RecvWindow           uint32 // Linux 5.4 and 6.2
	Reordering, ReordSeen            uint32 // segments; how often
	NotSent                          uint32
	PacingRate, MaxPacingRate        uint64 // bytes a second; all ones if unlimited
	DeliveryRate                     uint64 // bytes a second
	BytesAcked, BytesReceived        uint64 // SYN and FIN count as acknowledged bytes
	BytesSent, BytesRetrans          uint64
	SegsOut, SegsIn                  uint32
	DataSegsOut, DataSegsIn          uint32
	TotalRetrans, DSACKDups          uint32
	Delivered, DeliveredCE           uint32
	OutOfOrder                       uint32        // segments that came out of order
	Busy, RwndLimited, SndbufLimited time.Duration // with data to send; and held up by what
	Rehash                           uint32        // how often the flow's hash was changed

	// Raw are the bytes as the kernel gave them, in this machine's byte order.
	Raw []byte
}
