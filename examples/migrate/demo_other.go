//go:build !linux

package main

import (
	"context"
	"errors"
)

const serverRole = "demo-server"

func serve() error { return errors.ErrUnsupported }

func demo(context.Context, demoConfig, view) (*result, error) { return nil, errors.ErrUnsupported }
