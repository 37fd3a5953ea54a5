// Command criu dumps and restores a container's processes by CRIU, which it drives over
// its RPC protocol, while package netlock keeps the container's network locked.
// README.md tells how it works.
package main
