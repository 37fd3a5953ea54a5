// Package tcpinfo decodes the kernel's struct tcp_info, as getsockopt(TCP_INFO)
// and sock_diag give it, whatever kernel it comes from: a kernel appends fields
// over the years and hands out as many as it has.
package tcpinfo
