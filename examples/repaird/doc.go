// Command repaird switches the repair mode of TCP sockets for programs that may not
// do so themselves. README.md tells how it is used.
package main
