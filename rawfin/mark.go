package rawfin

// DefaultMark is the packet mark (SO_MARK, fwmark) of injected segments, by
// which packet filters recognise them. It shares no bit with the marks that
// software on servers commonly sets or looks at:
//
//	Owner               Bits        Where they are defined
//	Kubernetes          0x0000c000  https://github.com/kubernetes/kubernetes/blob/v1.24.8/pkg/kubelet/kubelet_network_linux.go (0x8000: drop; 0x4000: masquerade)
//	CNI portmap         0x00002000  https://github.com/containernetworking/plugins/blob/main/plugins/meta/portmap/main.go (masquerade)
//	Podman (netavark)   0x00002000  https://github.com/containers/netavark/blob/main/src/firewall/nft.rs (masquerade)
//	Cilium              0xffff0fff  https://github.com/cilium/cilium/blob/main/bpf/lib/common.h (see below for the other bits)
//	Calico              0xffff0000  https://docs.tigera.io/calico/latest/reference/resources/felixconfig (iptablesMarkMask)
//	Antrea              0xefff00ff  https://github.com/antrea-io/antrea/blob/main/pkg/agent/types/marks.go
//	kube-router         0x00030000  https://github.com/cloudnativelabs/kube-router/pull/992
//	OVN-Kubernetes      0x000003f0  https://github.com/ovn-kubernetes/ovn-kubernetes/blob/master/go-controller/pkg/node/types/const.go
//	AWS VPC CNI         0x00000080  https://github.com/aws/amazon-vpc-cni-k8s/blob/master/pkg/networkutils/network.go
//	AWS App Mesh        0x1e7700ce  https://github.com/fwmark/registry
//	Istio               0x00000fff  https://github.com/istio/istio/blob/master/cni/pkg/iptables/testdata/default.golden (0x539 and 0x111, masked so)
//	Weave Net           0x00060000  https://github.com/fwmark/registry
//	Tailscale           0x00ff0000  https://github.com/tailscale/tailscale/blob/main/tsconst/linuxfw.go
//	wg-quick            0x0000ca6c  https://git.zx2c4.com/wireguard-tools/tree/src/wg-quick/linux.bash (51820)
//	Docker swarm        0x00000fff  https://github.com/moby/moby/blob/master/daemon/libnetwork/service.go (one per service, counted from 0x100)
//	CRIU                0x0000c114  https://github.com/checkpoint-restore/criu/blob/criu-dev/soccr/soccr.h
//
// Between them these leave one bit, and even that is not all ours. Cilium puts
// the number of an IPsec key into 0xf000, and 0x1e00 or 0x1d00 on packets that
// it has encrypted or decrypted, but each time with a value in 0x0f00 that it
// looks at too; with 0x0f00 clear, as here, the bit says nothing to it.
// Nobody owns marks, so anybody's own rules may use the bit as well: then
// choose another with [WithMark], and tell the packet filters.
//
// What a shared bit does: of CRIU's mark, 0x8000 is the one by which kubelet's
// chain KUBE-FIREWALL drops packets, so on a node of such a cluster CRIU's
// segments never reach their socket.
const DefaultMark uint32 = 0x1000
