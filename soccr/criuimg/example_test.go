package criuimg_test

import (
	"archive/zip"
	"fmt"
	"log"
	"net/netip"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// What a dump tells of its sockets. Any fs.FS will do; a directory is os.DirFS.
func ExampleRead() {
	images, err := zip.OpenReader("../../testdata/criu-4.2/images.zip")
	if err != nil {
		log.Fatal(err)
	}
	defer images.Close()
	image, err := criuimg.Read(images)
	if err != nil {
		log.Fatal(err)
	}
	holders := image.Holders()
	for _, s := range image.Sockets[15:] {
		fd := holders[s.Inet.GetId()][0].FD
		if s.State() == soccr.StateListen {
			listener, _, err := s.Listener()
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("fd %d listens on %v with a backlog of %d\n", fd, listener.Local, listener.Backlog)
			continue
		}
		snapshot, _, err := s.Snapshot()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("fd %d %v %v-%v: %d bytes not read, %d not acknowledged\n", fd,
			snapshot.State, snapshot.Local, snapshot.Remote, len(snapshot.RecvQueue), len(snapshot.SendQueue))
	}
	// Output:
	// fd 19 LAST_ACK [::ffff:10.77.0.1]:57650-[::ffff:10.77.0.2]:9004: 3000 bytes not read, 1234 not acknowledged
	// fd 20 FIN_WAIT2 [::ffff:10.77.0.1]:44854-[::ffff:10.77.0.2]:9001: 0 bytes not read, 0 not acknowledged
	// fd 21 CLOSE [::ffff:10.77.0.1]:54246-[::ffff:10.77.0.2]:9003: 0 bytes not read, 0 not acknowledged
	// fd 22 listens on 0.0.0.0:8088 with a backlog of 37
}

// A dump is changed so that CRIU restores a connection at another address.
func ExampleSocket_SetSnapshot() {
	images, err := zip.OpenReader("../../testdata/criu-4.2/images.zip")
	if err != nil {
		log.Fatal(err)
	}
	defer images.Close()
	image, err := criuimg.Read(images)
	if err != nil {
		log.Fatal(err)
	}
	socket := image.Sockets[0]
	snapshot, lost, err := socket.Snapshot()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snapshot.Local, lost)

	snapshot.Local = netip.AddrPortFrom(netip.MustParseAddr("10.77.0.9"), snapshot.Local.Port())
	if lost, err = socket.SetSnapshot(snapshot); err != nil {
		log.Fatal(err)
	}
	local, err := socket.Local()
	fmt.Println(local, err, lost)
	// And then: image.Write(directory)

	// Output:
	// 10.77.0.1:44842 []
	// 10.77.0.9:44842 <nil> []
}
