package soccr_test

// poll is a call of older architectures only; the others have ppoll.
const poll = 1 << 32 // none
