// Command proxy accepts connections, reads their first request, and hands the
// established connection over to a backend host, which answers the client directly.
// README.md tells how it works.
package main
