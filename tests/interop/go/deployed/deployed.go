// Package deployed is what the deployed servers and clients share on the wire: a byte stream over WebSocket messages, yamux
// with the deployed settings, RFC 9934 key files, and one JSON line an event.
package deployed

import (
	"crypto/ecdh"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

var output sync.Mutex

// Report writes one event as a JSON line on standard output.
func Report(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for name, value := range fields {
		line[name] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

// curves by the names that flags have; 0x11eb (SecP256r1MLKEM768) only for Go 1.26 and later.
var curves = map[string]tls.CurveID{"P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521, "X25519": tls.X25519, "SecP256r1MLKEM768": 0x11eb}

// Curves reads a list of names with commas; none is what crypto/tls has by itself.
func Curves(names string) ([]tls.CurveID, error) {
	if names == "" {
		return nil, nil
	}
	var ids []tls.CurveID
	for name := range strings.SplitSeq(names, ",") {
		id, known := curves[name]
		if !known {
			return nil, fmt.Errorf("%q is no curve", name)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// YamuxConfig has the settings of the deployed server and client.
func YamuxConfig() *yamux.Config {
	config := yamux.DefaultConfig()
	config.AcceptBacklog = 256
	config.EnableKeepAlive = true
	config.KeepAliveInterval = 30 * time.Second
	config.MaxStreamWindowSize = 4 << 20
	config.StreamOpenTimeout = 15 * time.Second
	config.StreamCloseTimeout = 5 * time.Second
	config.LogOutput = os.Stderr
	return config
}

// Stream is the byte stream that binary messages carry; where one message ends means nothing.
type Stream struct {
	socket *websocket.Conn
	reader io.Reader
	write  sync.Mutex
}

// NewStream begins with what was already read of the first message.
func NewStream(socket *websocket.Conn, first io.Reader) *Stream {
	return &Stream{socket: socket, reader: first}
}

func (s *Stream) Read(p []byte) (int, error) {
	for {
		if s.reader == nil {
			kind, reader, err := s.socket.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				continue
			}
			s.reader = reader
		}
		n, err := s.reader.Read(p)
		if err == io.EOF {
			s.reader = nil
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (s *Stream) Write(p []byte) (int, error) {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.socket.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the WebSocket's connection.
func (s *Stream) Close() error { return s.socket.Close() }

// EchKey reads an RFC 9934 file: a PKCS #8 X25519 key and the ECHConfigList of one configuration.
func EchKey(path string, retry bool) (tls.EncryptedClientHelloKey, error) {
	var none tls.EncryptedClientHelloKey
	rest, err := os.ReadFile(path)
	if err != nil {
		return none, err
	}
	key := tls.EncryptedClientHelloKey{SendAsRetry: retry}
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return none, fmt.Errorf("%s: %w", path, err)
			}
			private, ok := parsed.(*ecdh.PrivateKey)
			if !ok {
				return none, fmt.Errorf("%s: not an X25519 key", path)
			}
			key.PrivateKey = private.Bytes()
		case "ECHCONFIG":
			list := block.Bytes
			if len(list) < 6 || int(binary.BigEndian.Uint16(list)) != len(list)-2 || int(binary.BigEndian.Uint16(list[4:]))+6 != len(list) {
				return none, fmt.Errorf("%s: not an ECHConfigList of one configuration", path)
			}
			key.Config = list[2:]
		}
	}
	if key.PrivateKey == nil || key.Config == nil {
		return none, fmt.Errorf("%s: a private key and a configuration are both needed", path)
	}
	return key, nil
}
