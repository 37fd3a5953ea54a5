// Package sockopt reads and writes socket options whose values are bytes or
// structures, for which x/sys/unix has no function.
package sockopt
