// Command soak moves many connections that are in use again and again, for as long
// as it is told, and stops at the first byte that is lost, doubled or changed.
// README.md tells what it does and how to read what it says.
package main
