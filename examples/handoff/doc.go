// Command handoff is a server that moves its live connections to a new process of
// itself, or to another host. README.md tells how it works.
package main
