// hashicorp/yamux over one TCP connection, for comparison with this project's implementation: it listens (or connects), is the
// server (or the client) of the session, sends back every stream's bytes as they come, and can be the one that opens streams.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/hashicorp/yamux"

	"ech-workers.example/interop/deployed"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	listen := flag.String("listen", "", "address to listen on for one connection")
	connect := flag.String("connect", "", "address to connect to")
	client := flag.Bool("client", false, "be the session's client")
	open := flag.Int("open", 0, "open this many streams at a time, send -size bytes on each, expect them back")
	size := flag.Int64("size", 1<<20, "bytes a stream")
	window := flag.Uint("window", 256<<10, "receive window")
	flag.Parse()

	connection, err := connection(*listen, *connect)
	if err != nil {
		log.Fatal(err)
	}
	config := deployed.YamuxConfig()
	config.MaxStreamWindowSize = uint32(*window)
	config.KeepAliveInterval = 200 * time.Millisecond
	start := yamux.Server
	if *client {
		start = yamux.Client
	}
	session, err := start(connection, config)
	if err != nil {
		log.Fatal(err)
	}
	if *open == 0 {
		serve(session)
		return
	}
	failed := make(chan error, *open)
	for range *open {
		go func() { failed <- exchange(session, *size) }()
	}
	for range *open {
		if err := <-failed; err != nil {
			deployed.Report("failed", map[string]any{"error": err.Error()})
			os.Exit(1)
		}
	}
	rtt, err := session.Ping()
	if err != nil {
		log.Fatal(err)
	}
	deployed.Report("done", map[string]any{"streams": *open, "bytes": *size, "ping_us": rtt.Microseconds()})
	_ = session.GoAway()
	_ = session.Close()
}

func connection(listen, connect string) (net.Conn, error) {
	if connect != "" {
		return net.Dial("tcp", connect)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	deployed.Report("listening", map[string]any{"address": listener.Addr().String()})
	return listener.Accept()
}

// serve sends back what each stream brings, and half-closes when the peer does.
func serve(session *yamux.Session) {
	streams := 0
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			deployed.Report("session-end", map[string]any{"streams": streams, "error": err.Error()})
			return
		}
		streams++
		go func() {
			_, err := io.Copy(stream, stream)
			if err != nil && !errors.Is(err, yamux.ErrStreamClosed) {
				log.Print(err)
			}
			_ = stream.Close()
		}()
	}
}

// exchange writes in pieces of random size and closes its half; everything must come back, then the end.
func exchange(session *yamux.Session, size int64) error {
	stream, err := session.OpenStream()
	if err != nil {
		return err
	}
	sent := sha256.New()
	written := make(chan error, 1)
	go func() {
		for left := size; left > 0; {
			piece := make([]byte, min(left, 1+mathrand.Int64N(200_000)))
			_, _ = rand.Read(piece)
			sent.Write(piece)
			if _, err := stream.Write(piece); err != nil {
				written <- err
				return
			}
			left -= int64(len(piece))
		}
		written <- stream.Close()
	}()
	received := sha256.New()
	n, err := io.Copy(received, stream)
	if err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if n != size || hex.EncodeToString(sent.Sum(nil)) != hex.EncodeToString(received.Sum(nil)) {
		return fmt.Errorf("sent %d bytes, %d came back, or they differ", size, n)
	}
	return nil
}
