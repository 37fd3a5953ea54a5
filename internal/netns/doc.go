// Package netns runs code in the network namespace that a file descriptor stands
// for, and tells which one a thread is in.
package netns
