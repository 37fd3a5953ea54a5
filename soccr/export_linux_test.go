package soccr

// BetweenReads has f called while a connection is being saved, until the
// returned function is called.
func BetweenReads(f func()) (restore func()) {
	betweenReads = f
	return func() { betweenReads = func() {} }
}

// BeforeVerify has f called with a socket that has been restored, but not read
// back yet, until the returned function is called.
func BeforeVerify(f func(fd int)) (restore func()) {
	beforeVerify = f
	return func() { beforeVerify = func(int) {} }
}
