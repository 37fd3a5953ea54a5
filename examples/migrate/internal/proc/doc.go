// Package proc stops running programs from outside, with all their processes and
// threads, looks into them, and lets them go on as if nothing had been.
//
// Programs are stopped by ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT, which
// neither they nor their parents can see; if wanted, by the freezer of their cgroup
// before that. System calls in which they wait are
// interrupted, and go on: most of them are restarted by the kernel, as after any
// stop; those that would return EINTR although there was no signal are restarted
// here ([Freezer.Freeze]).
package proc
