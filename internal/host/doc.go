// Package host makes hosts out of network namespaces, for tests and for the
// demo: each has its own addresses, routes, sockets and firewall, and all of
// it is gone when the process ends.
//
// A program that wants hosts calls [Isolate] first. It runs the program again
// as root of a new network namespace (and, for an ordinary user, of a new user
// namespace), so that neither root nor installed tools are needed and the
// machine's own network is never touched.
package host
