package wire

// An Observer is a Capture and the Checker that it feeds.
type Observer struct {
	capture *Capture
	checker *Checker
}

// Observe starts to watch a connection on a device of the calling thread's
// network namespace. See [Watch].
func Observe(device string, flow Flow) (*Observer, error) {
	checker := NewChecker(flow)
	capture, err := Watch(device, checker.Add)
	if err != nil {
		return nil, err
	}
	return &Observer{capture, checker}, nil
}

// Stop ends the capture and says what it has seen. It must be called exactly
// once.
func (o *Observer) Stop() (Report, error) {
	lost, err := o.capture.Stop()
	r := o.checker.Report()
	r.Lost = lost
	return r, err
}
