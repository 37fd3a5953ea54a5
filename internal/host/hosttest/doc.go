// Package hosttest gives tests their hosts.
package hosttest
